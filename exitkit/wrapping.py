"""Gives one network exits, tells where they could be, and takes them out again.

`exitkit.wrap`, `inspect` and `unwrap`, which take pipelines as well, are in `exitkit.pipelines.verbs`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from exitkit.config import ExitConfig, resolve_config
from exitkit.errors import AlreadyWrappedError, ConfigError, DoubtWarning
from exitkit.execution.gate import check_ungated
from exitkit.heads import output_kind
from exitkit.heads.build import Heads
from exitkit.model import ExitModel
from exitkit.modes.compiled import uncompiled
from exitkit.persistence.example import describe
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.plan import make_plan
from exitkit.surgery.spec import Plan


def wrap_network(
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
    network = uncompiled(backbone)
    plan = make_plan(network, example_inputs, adapter)
    for doubt in plan.doubts:
        warnings.warn(f"{plan.class_name}: {doubt}.", DoubtWarning, stacklevel=3)
    model = ExitModel(network, plan, resolved)
    for doubt in _doubts(plan, resolved):  # of heads that could be built
        warnings.warn(f"{plan.class_name}: {doubt}.", DoubtWarning, stacklevel=3)
    model.given = (backbone,)
    model.example = describe(example_inputs, plan.time)
    model.note_example(example_inputs)
    return model


def _doubts(plan: Plan, config: ExitConfig) -> list[str]:
    """What exits of a config will not do for a network, in words."""
    kind = output_kind(config.output.kind)
    # A network without a timestep that gives one vector a row is a classifier: it is called once.
    if not kind.needs_trajectory or plan.timestep is not None or len(plan.prediction_leaf.row) > 1:
        return []
    return [
        f"it takes no timestep and gives one vector a row, and exits of kind {kind.name!r} carry nothing "
        "outside a trajectory: every row of a single call runs to the end. Wrap a classifier with the "
        "preset 'relative', or with one that is trained on labels, such as 'paper'"
    ]


def inspect_network(
    backbone: nn.Module, *, example_inputs: Any, adapter: Adapter | None = None
) -> Plan:
    """Tells where a network could be cut; `exitkit.inspect` is the public name of this.

    An exit does not pay where the head of the preset `relative` costs what the skipped blocks do.
    """
    check_bare(backbone)
    plan = make_plan(uncompiled(backbone), example_inputs, adapter)
    with torch.random.fork_rng(devices=[]):
        heads = Heads(plan, resolve_config("relative", exits=("*",)))
    costs = zip(heads.boundaries, heads.costs(plan), strict=True)
    poor = {boundary.stage for boundary, cost in costs if cost >= 1}
    return replace(
        plan, boundaries=tuple(replace(b, pays=b.stage not in poor) for b in plan.boundaries)
    )


def unwrap_network(model: object) -> nn.Module:
    """Undoes `wrap_network`; `exitkit.unwrap` is the public name of this.

    Arguments:
        model: The wrapped model, which cannot be used afterwards.

    Returns:
        The backbone, the same object, as it was.

    Raises:
        AlreadyWrappedError: If it was undone before.
        ConfigError: If it is not a wrapped model.
    """
    if not isinstance(model, ExitModel):
        raise ConfigError(f"unwrap: expected what ek.wrap returned, got {type(model).__name__}.")
    return model.release()


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
    check_ungated(backbone)
