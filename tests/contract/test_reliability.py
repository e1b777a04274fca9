"""Whatever goes wrong, and wherever, the model is as it was and can be wrapped again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, ExitKitError
from exitkit.execution import executor, gate, patching
from exitkit.execution.gate import Gate
from exitkit.heads import build
from exitkit.pipelines.routes import take_over
from exitkit.policies import FixedExit, NeverExit, ScriptedExit
from exitkit.testing.contract import ContractError, equal, require
from tests.backbones import case
from tests.mishaps import (
    CASES,
    SLOW,
    SUBJECTS,
    Interrupted,
    Mishap,
    Subject,
    Whole,
    mixed_modes,
    raises_at,
    raising_at_call,
    spread,
)

LIKE_A_UVIT = ("dit", "timm_vit")


def attempt(model: nn.Module, inputs: ek.Inputs) -> BaseException | None:
    """Wraps a model; returns what came of it, with nothing left where it went well."""
    try:
        ek.unwrap(ek.wrap(model, example_inputs=inputs))
    except (Mishap, Interrupted, ExitKitError) as error:
        return error
    return None


# One pads what it joins, and `wrap` says what that means for decisions.
@pytest.mark.filterwarnings("ignore:.*as long as the longest:exitkit.errors.DoubtWarning")
@pytest.mark.parametrize(
    "subject",
    [
        # Modules are called alike in a DiT, a ViT and a U-ViT.
        pytest.param(s, id=s.id, marks=[pytest.mark.slow] * (s in SLOW or s.id in LIKE_A_UVIT))
        for s in SUBJECTS
    ],
)
def test_a_mishap_in_any_dry_run_leaves_the_model(subject: Subject) -> None:
    """In the root, the stem, an early block, the middle and the tail; in the 1st to the 4th run."""
    model, inputs = subject.make()
    whole = Whole(mixed_modes(model), inputs)
    with raising_at_call(model, 0, Mishap()) as count:
        whole.run()
    one = count[0]
    points = [1, 2, one + one // 4, 2 * one + one // 2, 3 * one - 1]
    for at in points:
        with raising_at_call(model, at, Mishap()) as count:
            error = attempt(model, inputs)
        # Where the example can be read in several ways, the next reading may have gone through.
        require(count[0] >= at, f"call {at} was not made")
        require(error is None or error.__cause__ is not None, f"call {at}: {error} hides its cause")
        whole(output=False)
    for at in (one // 2, 3 * one + one // 2):  # the 4th run is torch.fx's, or a timestep's
        with raising_at_call(model, at, Interrupted()):
            error = attempt(model, inputs)
        require(isinstance(error, Interrupted) or at > 3 * one, f"call {at} was not interrupted")
        whole(output=False)
    whole()
    require(attempt(model, inputs) is None, "the model cannot be wrapped any more")
    whole()


def broken_off(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, error: BaseException
) -> None:
    monkeypatch.setattr(place, name, raises_at(at, getattr(place, name), error))


PLACES = {
    "UncertaintyHead": (build, (1, 3)),
    "_site": (build.Heads, (1, 3)),
    "CallReader": (executor, (1,)),
    "MacCounter": (build, (2,)),  # while the cost of the heads is counted
    "Gate": (gate, (1, 2, 3)),
    "copy_signature": (gate, (3,)),
}


@pytest.mark.parametrize(
    ("name", "what", "error"),
    [
        # The same code path whatever the backbone; of a DiT, the gates in the default run.
        pytest.param(
            name,
            what,
            error,
            id=f"{name}-{what}-{error_id}",
            marks=[pytest.mark.slow] * (name != "uvit" and what != "Gate"),
        )
        for name in ("uvit", "dit", "unet_conditional")
        for what in PLACES
        for error_id, error in (("error", Mishap()), ("interrupt", Interrupted()))
        if name == "uvit" or (error_id == "error" and what not in ("CallReader", "copy_signature"))
    ],
)
def test_a_mishap_while_heads_and_gates_are_made_leaves_the_model(
    name: str, what: str, error: BaseException
) -> None:
    place, calls = PLACES[what]
    model, inputs = CASES[name].make()
    whole = Whole(model, inputs)
    for at in calls:
        with pytest.MonkeyPatch.context() as patch:
            if what == "Gate":  # the class itself must stay one: isinstance looks at it
                broken_off(patch, Gate, "__init__", at, error)
            else:
                broken_off(patch, place, what, at, error)
            with pytest.raises(type(error)):
                ek.wrap(model, example_inputs=inputs)
        whole()
    require(attempt(model, inputs) is None, "the model cannot be wrapped any more")
    whole()


# One pads what it joins, and `wrap` says what that means for decisions.
@pytest.mark.filterwarnings("ignore:.*as long as the longest:exitkit.errors.DoubtWarning")
@spread
def test_a_mishap_in_a_forward_leaves_the_next_one_right(subject: Subject) -> None:
    """In the middle, with a row gone already; the policy, the gates and the trace stay whole."""
    model, inputs = subject.make()
    whole = Whole(model, inputs)
    wrapped = ek.wrap(model, example_inputs=inputs)
    last = len(wrapped.exits) + 1
    wrapped.policy = ScriptedExit((1, last, 2))
    with torch.no_grad():
        expected = wrapped(*inputs.args, **inputs.kwargs)
        cost = wrapped.trace.cost
        with raising_at_call(model, 0, Mishap()) as count:
            wrapped(*inputs.args, **inputs.kwargs)
        for error in (Mishap(), Interrupted()):
            with raising_at_call(model, count[0] // 2 + 1, error), pytest.raises(type(error)):
                wrapped(*inputs.args, **inputs.kwargs)
            require(equal(wrapped(*inputs.args, **inputs.kwargs), expected), "rows got mixed up")
            require(wrapped.trace.cost == cost, "the trace counts the forward that failed")
    ek.unwrap(wrapped)
    whole()


def denoise(model: ek.ExitModel, fail: Callable[[int], Any] | None = None) -> list[torch.Tensor]:
    """Four steps of a trajectory with two calls each, carried from the third step on."""
    args, kwargs = case("uvit").inputs(3)
    outputs = []
    with torch.no_grad(), model.trajectory(4):
        for step in range(4):
            x, t = args[0] * (1 - 0.1 * step), torch.full((3,), 900 - 200 * step)
            model.policy = ScriptedExit((1, 6, 2)) if step > 1 else NeverExit()
            for call in range(2):
                if fail is not None and step == fail(call):
                    before = model.policy
                    for error in (Mishap(), Interrupted()):
                        with raising_at_call(model.backbone, 10, error):
                            with pytest.raises(type(error)):
                                model(x + call, t)
                    model.policy = ScriptedExit((1, 2))  # depths for other rows: refused
                    with pytest.raises(ek.ExitKitError):
                        model(x + call, t)
                    model.policy = before
                outputs.append(model(x + call, t, **kwargs))
    return outputs


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_call_that_failed_in_a_trajectory_can_be_made_again(at: int) -> None:
    """As if it had not been made: neither a step nor a branch more, and no memory lost."""
    model, inputs = CASES["uvit"].make()
    wrapped = ek.wrap(model, "carried", example_inputs=inputs)
    wrapped.heads.mark_fitted()
    expected, trace = denoise(wrapped), wrapped.trace
    require(int(trace.depth.min()) == 1, "no row was carried, so nothing could be lost")
    for call in (0, 1):
        found = denoise(wrapped, lambda now, call=call: at if now == call else None)
        for ours, theirs in zip(found, expected, strict=True):
            require(torch.equal(ours, theirs), "a failed call has changed a later one")
        require(torch.equal(wrapped.trace.depth, trace.depth), "a failed call is in the accounts")
    ek.unwrap(wrapped)


@pytest.mark.parametrize(
    "name",
    ["uvit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit", "unet_conditional"))],
)
def test_an_unwrap_that_failed_can_be_made_again(name: str) -> None:
    """It fails once at every gate in turn; in between no run counts on gates that are gone."""
    model, inputs = CASES[name].make()
    whole = Whole(model, inputs)
    wrapped = ek.wrap(model, example_inputs=inputs)
    for at in range(1, len(wrapped.plan.stages) + 1):
        with pytest.MonkeyPatch.context() as patch:
            broken_off(patch, gate, "restore", at, Mishap() if at % 2 else Interrupted())
            with pytest.raises((Mishap, Interrupted)):
                ek.unwrap(wrapped)
        wrapped.policy = FixedExit(1)
        with pytest.raises(AlreadyWrappedError, match="undone"):
            wrapped(*inputs.args, **inputs.kwargs)
        require(equal(whole.run(), whole.output), "the backbone itself gives something else")
        require(ek.unwrap(wrapped) is model, "unwrap did not end what it began")
        whole()
        with pytest.raises(AlreadyWrappedError):
            ek.unwrap(wrapped)
        wrapped = ek.wrap(model, example_inputs=inputs)
    ek.unwrap(wrapped)


@pytest.mark.parametrize("place", ["gates", "override", "removed"])
def test_a_model_that_took_over_its_backbone_can_be_released_again(place: str) -> None:
    model, inputs = CASES["uvit"].make()
    whole, told = Whole(model, inputs), []
    wrapped = ek.wrap(model, example_inputs=inputs)
    removed = raises_at(1 if place == "removed" else 0, lambda: told.append("removed"), Mishap())
    take_over(wrapped, removed)
    with pytest.MonkeyPatch.context() as patch:
        if place != "removed":
            broken_off(patch, {"gates": gate, "override": patching}[place], "restore", 1, Mishap())
        with pytest.raises(Mishap):
            ek.unwrap(wrapped)
    require(equal(whole.run(), whole.output), "the backbone itself gives something else")
    require(ek.unwrap(wrapped) is model, "unwrap did not end what it began")
    require("removed" in told, "its owner was not told")
    whole()
    with pytest.raises(AlreadyWrappedError):
        ek.unwrap(wrapped)


@pytest.mark.parametrize("plant", ["hook", "attribute", "flag", "forward", "value", "gradient"])
def test_the_comparison_notices_what_is_left_behind(plant: str) -> None:
    """The control of all tests above."""
    model, inputs = CASES["uvit"].make()
    whole = Whole(model, inputs)
    whole()
    block = model.mid_block
    if plant == "hook":
        block.register_forward_pre_hook(lambda *_: None)
    elif plant == "attribute":
        block.left_over = 1
    elif plant == "flag":
        block.training = True
    elif plant == "forward":
        block.forward = block.forward
    elif plant == "value":
        next(block.parameters()).data.add_(1e-3)
    else:
        next(block.parameters()).requires_grad_(False)
    with pytest.raises(ContractError):
        whole()
