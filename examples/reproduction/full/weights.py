"""Published U-ViT weights: the state dicts that its authors give away, and those fine-tuned from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitkit.errors import CheckpointError

CONTAINERS = ("nnet_ema", "ema", "state_dict", "model", "nnet")
"""Names under which a training state holds the weights; the averaged ones first."""
PREFIXES = ("module.", "nnet_ema.", "nnet.", "model.")
"""What wrappers put in front of every name."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a checkpoint into a U-ViT, all or nothing.

    Arguments:
        model: The U-ViT.
        path: A `.pth` file with a state dict, plain or inside a training state, or a `.safetensors`.

    Raises:
        CheckpointError: If the file is not there or cannot be read; or if its names or shapes are
            not the model's: the message lists every one of them.
    """
    state = read_state(path)
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{path} does not fit this {type(model).__name__}. Missing: {_listed(missing)}. "
            f"Unexpected: {_listed(unexpected)}. Other shapes: {_listed(shapes)}. Compare "
            "[backbone] of the config with the checkpoint."
        )
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, by their names in the bare U-ViT.

    Arguments:
        path: The file.

    Raises:
        CheckpointError: If it is not there, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            # The authors publish .pth files alone. `weights_only` unpickles tensors and nothing that
            # could run code; convert to safetensors once and this branch is never taken.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not there. The U-ViT authors' README links the published weights; put the "
            "file there, or set backbone.weights."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of tensors ({error}). Anything else is refused, since "
            "unpickling runs code."
        ) from error
    while isinstance(found, Mapping):
        inner = next((found[name] for name in CONTAINERS if name in found), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, or one of "
            f"{', '.join(CONTAINERS)} with them."
        )
    state = {str(name): tensor for name, tensor in found.items()}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if not state:
            break
    return state


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
