"""Pipelines stay what they were while their denoisers leave early, and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, BoundaryError, ConfigError
from exitkit.policies import FixedExit, NeverExit, Schedule, ScriptedExit, StepInfo
from tests.tiny_pipelines import CASES, STEPS, PipelineCase, case, models

# Each has a sibling of its kind: another solver, a larger UNet, a DiT with captions, a video transformer.
ALIKE = [case(name) for name in ("ddim", "sdxl", "pixart", "ltx")]
every = pytest.mark.parametrize(
    "one", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c in ALIKE)) for c in CASES]
)
FEW = [case(name) for name in ("sd", "sd3", "wan")]
# One denoiser and two; the UNet is one, too.
few = pytest.mark.parametrize(
    "one", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c is FEW[0])) for c in FEW]
)
# A UNet, a transformer with two streams and two experts at once; the others are of these forms.
few_always = pytest.mark.parametrize(
    "one", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c not in FEW)) for c in CASES]
)


def with_each(
    argument: str, always: str, other: str, also: list[PipelineCase]
) -> pytest.MarkDecorator:
    """One pipeline of each kind with one value, and some also with the other one."""
    params = [
        pytest.param(c, value, id=f"{c.id}-{value}", marks=[pytest.mark.slow] * late)
        for c in CASES
        for value, late in ((always, c in ALIKE), (other, c not in also))
    ]
    return pytest.mark.parametrize(("one", argument), params)


@dataclass(frozen=True)
class Turns(Schedule):
    """The exit in every second call, the whole network in the others."""

    asked: list[int] = field(default_factory=list)
    name: ClassVar[str] = "turns"

    def depths(self, info: StepInfo) -> Tensor:
        self.asked.append(info.batch)
        return torch.full((info.batch,), 1 + len(self.asked) % 2, device=info.device)


# ------------------------------------------------------------------------------------ a look at bare runs


@few_always
def test_a_suspended_pipeline_draws_with_its_bare_denoisers(one: PipelineCase) -> None:
    pipe = one.make()
    before = one.run(pipe)
    wrapped = one.wrap(pipe, "relative")
    wrapped.policy = FixedExit(1)
    early = one.run(pipe)
    assert not torch.equal(early, before), "the control: nobody left early"
    costs = [model.trace.cost for model in models(wrapped)]
    with wrapped.suspended():
        assert torch.equal(one.run(pipe), before)
        assert all("forward" not in vars(m) for net in one.networks(pipe) for m in net.modules())
        assert not any(model.trace.calls for model in models(wrapped))
    assert [
        model.trace.cost for model in models(wrapped)
    ] == costs  # those of the last run with exits
    assert torch.equal(one.run(pipe), early)
    ek.unwrap(pipe)
    assert torch.equal(one.run(pipe), before)


# --------------------------------------------------------------------------- nothing changes by itself


@with_each("config", "carried", "relative", FEW[:2])
def test_without_exits_nothing_changes(one: PipelineCase, config: str) -> None:
    pipe = one.make()
    before = one.run(pipe)
    held, settings = one.networks(pipe), dict(pipe.config)
    configs, classes = [dict(n.config) for n in held], [type(n) for n in held]
    wrapped = one.wrap(pipe, config)
    for policy in (None, NeverExit()):  # untrained heads never let go either
        for model in models(wrapped):
            model.policy = policy or model.policy
        assert torch.equal(one.run(pipe), before)
    for model, network, name in zip(models(wrapped), held, one.components, strict=True):
        assert getattr(pipe, name) is pipe.components[name] is network is model.backbone
        assert bool((model.trace.depth == model.trace.exits + 1).all()), "it did run the exits' way"
    assert [type(n) for n in held] == classes and [dict(n.config) for n in held] == configs
    assert dict(pipe.config) == settings
    assert pipe.dtype == torch.float32 and pipe.device.type == "cpu"

    if config == "carried":
        assert ek.unwrap(pipe) is pipe
    else:
        assert ek.disable_early_exit(pipe) is pipe
    one.assert_bare(pipe)
    assert torch.equal(one.run(pipe), before)
    with pytest.raises(ConfigError, match="no exits"):
        ek.unwrap(pipe)
    with pytest.raises(AlreadyWrappedError, match="unwrap"):
        ek.unwrap(models(wrapped)[0])


@every
def test_the_comparison_would_notice(one: PipelineCase) -> None:
    pipe = one.make()
    before = one.run(pipe)
    assert torch.equal(one.run(pipe), before), "the same seed is not enough to repeat it"
    assert not torch.equal(one.run(pipe, seed=1), before)
    for network in one.networks(pipe):
        weight = next(p for n, p in network.named_parameters() if p.ndim > 1 and ".0." in n)
        weight.data.mul_(1.01)
        assert not torch.equal(one.run(pipe), before)
        weight.data.div_(1.01)


@few
def test_undoing_the_model_undoes_the_pipeline(one: PipelineCase) -> None:
    pipe = one.make()
    before = one.run(pipe)
    ek.unwrap(one.wrap(pipe))
    assert torch.equal(one.run(pipe), before)
    one.assert_bare(pipe)


# ------------------------------------------------------------------------------------ exits are taken


@with_each("guidance", "independent", "tied", FEW)
def test_exits_are_taken(one: PipelineCase, guidance: str) -> None:
    pipe, count = one.make(), 2
    full = one.run(pipe, count)
    wrapped = one.wrap(pipe, guidance=guidance)
    for model in models(wrapped):
        model.policy = FixedExit(1)
    seen: list[int] = []
    callback = {"callback_on_step_end": lambda _, step, *__: seen.append(step) or {}}
    early = one.run(pipe, count, **(callback if one.callback else {}))
    assert early.shape == full.shape and bool(early.isfinite().all())
    assert not torch.equal(early, full)
    assert seen == (list(range(STEPS)) if one.callback else [])
    for model in models(wrapped):
        assert model.trace.depth.shape == (one.steps * one.calls, count * one.copies)
        assert bool((model.trace.depth[one.calls :] == 1).all()), "all but the first step, in full"
        assert model.trace.cost < 1

    # Different depths for the copies of a sample, stacked or in calls of their own.
    script = (1,) * (count * one.copies - 1) + (2,)
    policy = ScriptedExit(script) if one.calls == 1 else Turns()
    for model in models(wrapped):
        model.policy = policy
    assert bool(one.run(pipe, count).isfinite().all())
    for model in models(wrapped):
        depths = model.trace.depth.reshape(one.steps, one.calls, one.copies, count)
        together = depths.amax((1, 2), keepdim=True).expand_as(depths)
        alone = one.copies * one.calls == 1
        assert torch.equal(depths, together) == (alone or guidance == "tied")
        if one.calls == 1:
            expected = torch.tensor(script).reshape(one.copies, count)
            if guidance == "tied":
                expected = expected.amax(0, keepdim=True).expand(one.copies, count)
            assert torch.equal(depths[1:, 0], expected.expand(STEPS - 1, one.copies, count))
        else:
            assert bool((depths == 1).any()), "some step did leave"


def test_correctors_are_not_copies() -> None:
    """Heun asks twice at a timestep, the second time with another input."""
    one, policy = case("sd3"), Turns()
    pipe = one.make()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    model = one.wrap(pipe, guidance="tied")
    model.policy = policy
    one.run(pipe)
    assert len(policy.asked) == model.trace.steps == 2 * STEPS - 1


# ---------------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def sd3() -> Iterator[Any]:
    pipe = case("sd3").make()
    yield pipe
    case("sd3").assert_bare(pipe)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"example_inputs": (1, 2)}, ConfigError, "keywords"),
        ({"components": ("nonsense",)}, ConfigError, "no network 'nonsense'.*transformer"),
        ({"components": ("transformr",)}, ConfigError, "mean.*transformer"),
        ({"components": ("scheduler",)}, ConfigError, "no network 'scheduler'"),
        ({"exits": (99,)}, BoundaryError, "99"),
        ({"guidance": "loose"}, ConfigError, "guidance"),
    ],
)
def test_wrong_wishes(sd3: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ek.wrap(sd3, **{"example_inputs": case("sd3").call(1), **options})


@few
def test_enabling_twice(one: PipelineCase) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe)
    for model in models(wrapped):
        model.policy = FixedExit(1)
    early = one.run(pipe)
    with pytest.raises(AlreadyWrappedError, match="undo it first"):
        one.wrap(pipe)
    assert torch.equal(one.run(pipe), early)
    ek.unwrap(pipe)
    one.assert_bare(pipe)
    one.wrap(pipe)


def test_half_a_failure_is_undone() -> None:
    one = case("wan")
    pipe = one.make()
    before, calls = one.run(pipe), []
    pipe.transformer_2.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(ek.Inputs(*args, **kwargs)), with_kwargs=True
    )
    one.run(pipe)
    model = ek.wrap(pipe.transformer_2, example_inputs=calls[0])
    with pytest.raises(AlreadyWrappedError):
        one.wrap(pipe)
    ek.unwrap(model)
    one.assert_bare(pipe)
    assert torch.equal(one.run(pipe), before)
