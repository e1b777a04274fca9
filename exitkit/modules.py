"""Gives one network exits, or gives it back the exits that were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from exitkit import persistence
from exitkit.config import ExitConfig, resolve_config
from exitkit.errors import AlreadyWrappedError, ConfigError
from exitkit.execution.gate import Gate
from exitkit.execution.patching import found
from exitkit.model import ExitModel
from exitkit.policies import policy_from_dict
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.plan import make_plan


def wrap_module(
    backbone: nn.Module,
    config: str | ExitConfig = "relative",
    *,
    example_inputs: Any,
    adapter: Adapter | None = None,
    **overrides: Any,
) -> ExitModel:
    """Gives a network exits; `exitkit.wrap` is the public name of this and tells the arguments."""
    check_bare(backbone)
    resolved = resolve_config(config, **overrides)
    plan, seen = make_plan(backbone, example_inputs, adapter)
    skeletons = {(c.path, c.nth): c.skeleton for c in seen.base.calls}
    return ExitModel(backbone, plan, resolved, skeletons)


def load_pretrained(
    backbone: nn.Module,
    path: str | Path,
    *,
    example_inputs: Any,
    adapter: Adapter | None = None,
    check_weights: bool = True,
) -> ExitModel:
    """Wraps a backbone with saved heads; `ExitModel.from_pretrained` is the public name of this.

    Arguments:
        backbone: The backbone that the heads were fitted on. If it was fine-tuned with them, the
            saved weights are loaded into it.
        path: Folder written by `save_pretrained`.
        example_inputs: As for `wrap`.
        adapter: As for `wrap`.
        check_weights: Refuse a backbone with other weights.

    Returns:
        The wrapped model with its policy.

    Raises:
        CheckpointError: If the folder is damaged or belongs to another backbone; the backbone is
            left as it was.
    """
    config, described = persistence.read_config(path)
    if check_weights:
        persistence.check_backbone(backbone, described, path)
    model = wrap_module(backbone, config, example_inputs=example_inputs, adapter=adapter)
    try:
        persistence.load_tensors(Path(path) / persistence.HEADS, model.heads, "heads")
        model.policy = policy_from_dict(described["policy"])
        if config.loss.train_backbone:
            file = Path(path) / persistence.BACKBONE
            persistence.load_tensors(file, backbone, "backbone")
    except BaseException:
        model.release()
        raise
    return model


def check_bare(backbone: object) -> None:
    """Refuses what is no network, or is wrapped already.

    Arguments:
        backbone: What the user wants to wrap or inspect.

    Raises:
        AlreadyWrappedError: If it, or a part of it, is wrapped.
        ConfigError: If it is no network.
    """
    if isinstance(backbone, ExitModel):
        raise AlreadyWrappedError(
            f"This {backbone.plan.class_name} is wrapped already. Assign model.policy to change its "
            "policy, or undo it with ek.unwrap(model) and wrap again."
        )
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"Expected a torch.nn.Module or a diffusers pipeline, got {type(backbone).__name__}."
        )
    for path, module in backbone.named_modules():
        if found(module, Gate):
            raise AlreadyWrappedError(
                f"{type(backbone).__name__}: block {path!r} ({type(module).__name__}) is wrapped "
                "already. Use that wrapped model, or undo it first with ek.unwrap(model)."
            )
