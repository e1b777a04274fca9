"""The three calls that begin and end everything: inspect, wrap, unwrap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from exitkit import persistence
from exitkit.config import ExitConfig, resolve_config
from exitkit.errors import AlreadyWrappedError, ConfigError
from exitkit.execution.gates import Gate
from exitkit.model import ExitModel
from exitkit.policies import policy_from_dict
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.planning import make_plan
from exitkit.surgery.spec import Plan


def wrap(
    backbone: nn.Module,
    config: str | ExitConfig = "relative",
    *,
    example_inputs: Any,
    adapter: Adapter | None = None,
    **overrides: Any,
) -> ExitModel:
    """Gives a backbone exits.

    The blocks are found by running the backbone a few times on the example. Nothing of the backbone
    is rewritten, nothing changes until a policy lets rows leave, and untrained heads never do.

    Arguments:
        backbone: Any denoiser or classifier.
        config: Name of a preset (`paper`, `official`, `relative`, `carried`) or an `ExitConfig`.
        example_inputs: What the backbone is called with: a tuple is positional, a dict is keyword,
            `ek.Inputs(*args, **kwargs)` is both. Any batch size of one or more.
        adapter: Declarations about the architecture; looked up if None.
        overrides: Fields of `ExitConfig` to replace, for example `exits=(1, -1)`.

    Returns:
        The wrapped model, called like the backbone.

    Raises:
        AlreadyWrappedError: If the backbone is wrapped already.
        UnsupportedBackboneError: If it has no blocks to skip; the message lists what was seen.
        TracingError: If it does not run on the example.
        BoundaryError: If an exit is named that is not there.
        ConfigError: If the config is wrong.
    """
    _check_backbone(backbone)
    resolved = resolve_config(config, **overrides)
    plan, seen = make_plan(backbone, example_inputs, adapter)
    skeletons = {(c.path, c.nth): c.skeleton for c in seen.base.calls}
    return ExitModel(backbone, plan, resolved, skeletons)


def inspect(backbone: nn.Module, *, example_inputs: Any, adapter: Adapter | None = None) -> Plan:
    """Tells where a backbone could be cut, without touching it.

    Arguments:
        backbone: Any denoiser or classifier.
        example_inputs: As for `wrap`.
        adapter: As for `wrap`.

    Returns:
        The plan; printed, a table of boundary, path, class, shape, share of MACs, and whether it is
        usable or why not.
    """
    _check_backbone(backbone)
    return make_plan(backbone, example_inputs, adapter)[0]


def unwrap(model: ExitModel) -> nn.Module:
    """Undoes `wrap`.

    Arguments:
        model: The wrapped model. It cannot be used afterwards.

    Returns:
        The backbone, the same object, as it was.

    Raises:
        AlreadyWrappedError: If it was undone before.
        ConfigError: If it is not a wrapped model.
    """
    if not isinstance(model, ExitModel):
        raise ConfigError(f"unwrap: expected what ek.wrap returned, got {type(model).__name__}.")
    return model.release()


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
    model = wrap(backbone, config, example_inputs=example_inputs, adapter=adapter)
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


def _check_backbone(backbone: object) -> None:
    if isinstance(backbone, ExitModel):
        raise AlreadyWrappedError(
            f"This {backbone.plan.class_name} is wrapped already. Assign model.policy to change its "
            "policy, or undo it with ek.unwrap(model) and wrap again."
        )
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"Expected a torch.nn.Module, got {type(backbone).__name__}. Of a pipeline, pass its "
            "denoiser: pipe.transformer or pipe.unet."
        )
    for path, module in backbone.named_modules():
        if isinstance(module.__dict__.get("forward"), Gate):
            raise AlreadyWrappedError(
                f"{type(backbone).__name__}: block {path!r} ({type(module).__name__}) is wrapped "
                "already. Use that wrapped model, or undo it first with ek.unwrap(model)."
            )
