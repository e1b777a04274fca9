"""The network in a sampling loop: where it computes, how it is called, what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError, suggest
from exitkit.execution.call_form import CallForm
from exitkit.model import ExitModel, ExitModels
from exitkit.surgery.inputs import signature_of


def placement(model: Any) -> tuple[torch.device, torch.dtype]:
    """Says where a model computes, and in what.

    Arguments:
        model: A module, or any function, which is taken to compute on the CPU in float32.

    Returns:
        Device and dtype of its first floating-point parameter.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    for parameter in parameters:
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def call_form(model: Any) -> CallForm:
    """Says how a model is called, and which tensor of its output is the prediction.

    Arguments:
        model: A wrapped model, whose plan knows both, or anything that is called with a noisy input
            and a timestep.

    Returns:
        The form.

    Raises:
        ConfigError: If the model takes token ids: nothing here makes noise of those.
    """
    model = getattr(model, "stands_for", model)  # what is called like a wrapped model
    if isinstance(model, ExitModel):
        noisy = model.plan.noisy_leaf
        if not noisy.dtype.startswith(("float", "bfloat")):
            raise ConfigError(
                f"{name_of(model)} takes token ids ({noisy.path!r}, {noisy.dtype}), and samplers add "
                "noise to numbers. Run its own sampling loop inside `with model.trajectory():`, and fit "
                "its exits on a list of exitkit.training.Example((ids, timestep))."
            )
        return CallForm.of(model.plan, model.backbone.forward)
    return CallForm()


def check_call(model: Any, shape: tuple[int, ...], branches: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a shape or conditions that a network cannot be called with.

    Arguments:
        model: A wrapped model, or anything that is called alike.
        shape: Shape of one sample.
        branches: Conditions of each call of one evaluation.

    Raises:
        ShapeError: If the shape has another number of axes than the samples that it was wrapped with.
        ConfigError: If a condition is misspelt, or one is missing.
    """
    model = getattr(model, "stands_for", model)
    name, form = name_of(model), call_form(model)
    if isinstance(model, ExitModel):
        leaf = model.plan.noisy_leaf
        plain = model.plan.batched and not leaf.listed and leaf.fold == 1
        if plain and len(shape) != len(leaf.row):
            batch = len(shape) == len(leaf.row) + 1
            why = f"Leave the batch out: shape={shape[1:]}" if batch else f"Pass shape={leaf.row}"
            raise ShapeError(
                f"Sampler: shape is {shape}, and {name} was wrapped with samples of shape {leaf.row}. {why}."
            )
    network = model.backbone if isinstance(model, ExitModel) else model
    signature = signature_of(network.forward if isinstance(network, nn.Module) else network)
    if signature is None or form.parameters:  # what is inside a mapping has no signature
        return
    parameters = signature.parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if Parameter.VAR_KEYWORD in kinds or Parameter.VAR_POSITIONAL in kinds:
        return
    own = [form.noisy, form.timestep] if form.noisy else [*parameters][: 1 + form.timed]
    free = [n for n in parameters if n not in own]
    for given in branches:
        unknown = [n for n in given if n not in free]
        if unknown:
            raise ConfigError(
                f"Sampler: {name} takes no condition {' or '.join(map(repr, unknown))} (it takes "
                f"{', '.join(free) or 'none'}).{suggest(unknown[0], free)} Rename it in conditions=."
            )
        needed = [n for n in free if parameters[n].default is Parameter.empty and n not in given]
        if needed:
            raise ConfigError(
                f"Sampler: {name} needs {' and '.join(map(repr, needed))}, which the conditions "
                f"({', '.join(given) or 'none'}) do not hold. Pass conditions={{{needed[0]!r}: ...}}."
                + ("" if form.timed else _untimed(needed[0]))
            )


def _untimed(name: str) -> str:
    return (
        f" No timestep was found when it was wrapped: if {name!r} is the timestep, wrap it again with "
        f"adapter=ek.Adapter('mine', lambda network: True, timestep={name!r}), and fit it again."
    )


def predicted_type(scheduler: Any) -> str | None:
    """What a scheduler takes a prediction for, in diffusers' words.

    Arguments:
        scheduler: Class and settings of a scheduler, as `settings_of` tells them.

    Returns:
        `epsilon`, `v_prediction`, `sample`, `flow_prediction` or the scheduler's own word; None where
        it does not say.
    """
    if not isinstance(scheduler, Mapping):
        return None
    name, declared = str(scheduler.get("class")), scheduler.get("prediction_type")
    if declared is not None:
        return str(declared)
    if name == "ScoreSdeVpScheduler":
        return "epsilon"
    return "flow_prediction" if name.startswith("FlowMatch") else None


def check_prediction_type(model: Any, describe: Callable[[], Mapping[str, Any]]) -> None:
    """Refuses a scheduler that takes predictions for something else than a fit was told.

    Arguments:
        model: What is run; only wrapped models that were fitted know.
        describe: Describes the sampler, with its scheduler's class and settings.

    Raises:
        ConfigError: If the two contradict each other: what is drawn would be nonsense.
    """
    parts = [*model.values()] if isinstance(model, ExitModels) else [model]
    known = [m for m in parts if isinstance(m, ExitModel) and m.predicts is not None]
    if not known:
        return
    scheduler: Any = describe().get("scheduler")
    taken = predicted_type(scheduler)
    for one in known:
        if taken is None or one.predicts == taken:
            continue
        raise ConfigError(
            f"{scheduler['class']} takes predictions for {taken!r}, and this {name_of(one)} was fitted as a "
            f"network that predicts {one.predicts!r}: what is drawn would be nonsense. Give the scheduler "
            f"prediction_type={one.predicts!r}, or fit with what fits the scheduler (tasks.Noise is epsilon, "
            "Velocity v_prediction, Sample sample, FlowMatching flow_prediction). If the fit was told wrong "
            "and the network is not, set model.predicts = None."
        )


def example_of(model: Any) -> str:
    """What a wrapped model was wrapped with, as a sentence for an error; empty for any other."""
    model = getattr(model, "stands_for", model)
    if not isinstance(model, ExitModel):
        return ""
    plan = model.plan
    others = [leaf.path for leaf in plan.inputs if leaf.path not in (plan.noisy, plan.timestep)]
    more = f" and with {', '.join(others)}" if others else ""
    return f" It was wrapped with samples of shape {plan.noisy_leaf.row}{more}."


class Planned(nn.Module):
    """A bare backbone that is called, and read, as the plan of a wrapped one says.

    Arguments:
        backbone: The bare backbone.
        form: How it is called.
    """

    def __init__(self, backbone: nn.Module, form: CallForm) -> None:
        super().__init__()
        self.backbone, self._form = backbone, form

    def forward(self, noisy: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        """The backbone's prediction, with shape (B, ...)."""
        given = self._form.arguments(noisy, timestep, **conditions)
        return self._form.prediction(self.backbone(*given.args, **given.kwargs))


def planned(backbone: nn.Module, model: ExitModel) -> nn.Module:
    """A bare backbone in the form that `generate` calls, by what is known of a wrapped one.

    Arguments:
        backbone: The bare backbone.
        model: A wrapped backbone of the same kind.

    Returns:
        The backbone itself wherever that is possible: anything around it would cost it time.
    """
    form = call_form(model)
    alone = len(model.plan.outputs) == 1
    return backbone if form.leads and alone else Planned(backbone, form)


def name_of(model: Any) -> str:
    """What errors call a network: the class of the backbone."""
    return type(model.backbone if isinstance(model, ExitModel) else model).__name__
