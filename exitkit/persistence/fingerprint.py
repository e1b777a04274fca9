"""What ties saved exits to a backbone: its class, its modules, its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def structure(backbone: nn.Module) -> str:
    """Hash of a backbone's class and of the names and shapes of its state, LoRA layers aside."""
    digest = hashlib.sha256(type(backbone).__name__.encode())
    for name, tensor in own_state(backbone):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    return digest.hexdigest()[:16]


def values(backbone: nn.Module) -> str | None:
    """Hash of 16 evenly spread entries of every tensor of a backbone, as float32; LoRA layers aside.

    Arguments:
        backbone: The backbone.

    Returns:
        The hash; None where weights are offloaded and not at hand.
    """
    digest = hashlib.sha256()
    for _, tensor in own_state(backbone):
        if not isinstance(tensor, Tensor) or not tensor.numel():
            continue
        if tensor.is_meta:
            return None
        flat = tensor.detach().flatten()
        index = torch.linspace(0, flat.numel() - 1, 16, device=flat.device).long()
        digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def lora_adapters(backbone: nn.Module) -> list[str]:
    """Names of the LoRA (and other PEFT) adapters that are loaded in a backbone.

    Arguments:
        backbone: The backbone.

    Returns:
        The names, sorted; those that are merged or switched off count, too.
    """
    found: set[str] = set()
    for module in backbone.modules():
        if _is_peft_layer(module):
            layers = (getattr(module, name, None) for name in ("lora_A", "lora_embedding_A"))
            found.update(name for layer in layers if layer is not None for name in layer)
    return sorted(found)


def own_state(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """State of a backbone under the names that it has without LoRA layers.

    Arguments:
        backbone: The backbone.

    Yields:
        Names and tensors, in the order of the state dict.
    """
    layers = {name for name, module in backbone.named_modules() if _is_peft_layer(module)}
    for name, tensor in backbone.state_dict().items():
        parts = name.split(".")
        inside = next(
            (i for i in range(1, len(parts)) if ".".join(parts[:i]) in layers), None
        )  # the outermost layer that it belongs to
        if inside is None:
            yield name, tensor
        elif parts[inside] == "base_layer":
            yield ".".join([*parts[:inside], *parts[inside + 1 :]]), tensor


def _is_peft_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.") and hasattr(module, "base_layer")
