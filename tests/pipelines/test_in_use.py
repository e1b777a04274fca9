"""What else people do with pipelines goes on working while exits are on, and after mishaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import exitkit as ek
from exitkit.policies import FixedExit, NeverExit
from tests.tiny_pipelines import STEPS, PipelineCase, case, models

FEW = [case(name) for name in ("sd", "sd3", "wan")]
# Hooks, files and dtypes know no architecture, so the UNet runs with the slow tests.
FEW_PARAMS = [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.id == "sd")) for c in FEW]
few = pytest.mark.parametrize("one", FEW_PARAMS)
both = pytest.mark.parametrize("one", FEW_PARAMS[:2])


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@few
def test_saving_while_enabled(one: PipelineCase, tmp_path: Path) -> None:
    pipe = one.make()
    pipe.save_pretrained(tmp_path / "before")
    one.wrap(pipe)
    pipe.save_pretrained(tmp_path / "enabled")
    before, enabled = files(tmp_path / "before"), files(tmp_path / "enabled")
    assert any(name.endswith(".safetensors") for name in before)
    assert list(before) == list(enabled)
    assert [name for name in before if before[name] != enabled[name]] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(case("sd"), diffusers.EulerDiscreteScheduler, marks=pytest.mark.slow),
        (case("sd"), diffusers.PNDMScheduler),
        (case("sd3"), diffusers.FlowMatchHeunDiscreteScheduler),
    ],
    ids=lambda x: getattr(x, "id", None) or x.__name__,
)
def test_another_scheduler_while_enabled(one: PipelineCase, other: Any) -> None:
    bare, pipe = one.make(), one.make()
    model = one.wrap(pipe)
    for each in (bare, pipe):
        each.scheduler = other.from_config(each.scheduler.config)
    model.policy = NeverExit()
    full = one.run(pipe)
    assert torch.equal(full, one.run(bare))
    model.policy = FixedExit(1)
    early = one.run(pipe)
    assert bool(early.isfinite().all()) and not torch.equal(early, full)
    assert model.trace.cost < 1 and model.trace.steps == len(pipe.scheduler.timesteps)


class Hook(ModelHook):
    """Counts the calls that go through it."""

    calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("when", ["before", "after"])
@both
def test_hooks_of_accelerate(one: PipelineCase, when: str) -> None:
    pipe, hook = one.make(), Hook()
    (network,) = one.networks(pipe)
    before = one.run(pipe)
    if when == "before":
        add_hook_to_module(network, hook)
    model = one.wrap(pipe)
    if when == "after":
        add_hook_to_module(network, hook)
    hook.calls = 0
    assert torch.equal(one.run(pipe), before)
    fired = hook.calls
    model.policy = FixedExit(1)
    assert not torch.equal(one.run(pipe), before)
    ek.unwrap(pipe)
    hook.calls = 0
    assert network._hf_hook is hook
    assert torch.equal(one.run(pipe), before)
    assert hook.calls == STEPS
    remove_hook_from_module(network)
    network.__dict__.pop("forward")  # accelerate leaves a bound method there
    one.assert_bare(pipe)
    assert torch.equal(one.run(pipe), before)
    assert fired == STEPS, "once a call"


def test_hooks_of_torch_fire_once_a_call() -> None:
    one, fired = case("sd3"), []
    pipe = one.make()
    pipe.transformer.register_forward_pre_hook(lambda *_: fired.append("pre"))
    pipe.transformer.register_forward_hook(lambda *_: fired.append("hook"))
    one.wrap(pipe)
    fired.clear()
    one.run(pipe)
    assert fired == ["pre", "hook"] * STEPS


def offload(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload`: weights are on the device `meta` between calls."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            cpu_offload(component, torch.device("cpu"))


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_weights_that_wait_elsewhere(when: str) -> None:
    one = case("sd3")
    pipe = one.make()
    before = one.run(pipe)
    if when != "after":
        offload(pipe)
        assert pipe.transformer.device.type == "meta" and torch.equal(one.run(pipe), before)
    if when == "never":
        return  # pipelines bear it by themselves
    model = one.wrap(pipe)
    if when == "after":
        offload(pipe)
    assert torch.equal(one.run(pipe), before)
    model.policy = FixedExit(1)
    assert bool(one.run(pipe).isfinite().all()) and model.trace.cost < 1


@both
def test_heads_follow_another_dtype(one: PipelineCase) -> None:
    bare, pipe = one.make().to(torch.bfloat16), one.make()
    model = one.wrap(pipe)
    pipe.to(torch.bfloat16)
    model.policy = NeverExit()
    full = one.run(pipe)
    assert torch.equal(full, one.run(bare))
    model.policy = FixedExit(1)
    early = one.run(pipe)
    assert {p.dtype for p in model.heads.parameters()} == {torch.bfloat16}
    assert bool(early.isfinite().all()) and not torch.equal(early, full)
    assert model.trace.cost < 1


OFFLOADED = [("sd", "after"), ("sd3", "before"), ("wan", "after")]
"""These always; the other combinations, and Flux with two streams as SD3, with the slow tests."""


@pytest.mark.parametrize(
    ("one", "when"),
    [
        pytest.param(
            case(name),
            when,
            id=f"{name}-{when}",
            marks=[pytest.mark.slow] * ((name, when) not in OFFLOADED),
        )
        for name in ("sd", "sd3", "wan", "flux")
        for when in ("before", "after")
    ],
)
def test_model_offload_over_many_calls(one: PipelineCase, when: str) -> None:
    """diffusers takes its hooks off after each call, and puts them on again."""
    plain, pipe = one.make(), one.make()
    bare = one.run(plain)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    torch.manual_seed(0)  # heads that make predictions of their own start at random
    wrapped = one.wrap(pipe, "relative")
    torch.manual_seed(0)
    other = one.wrap(plain, "relative")
    if when == "after":
        pipe.enable_model_cpu_offload(device="cpu")
    wrapped.policy = other.policy = FixedExit(1)
    early = one.run(plain)
    assert torch.equal(one.run(plain), early)  # the first call looks at shapes, which costs
    assert not torch.equal(early, bare), "the control: nobody left early"
    for call in range(3):
        for model in models(wrapped):
            model._trace = None
        assert torch.equal(one.run(pipe), early)
        assert wrapped.trace.cost < 1 and (call == 0 or wrapped.trace.cost == other.trace.cost)
        assert all(bool((m.trace.depth == 1).all()) for m in models(wrapped))
    with wrapped.suspended():
        assert torch.equal(one.run(pipe), bare)
    assert torch.equal(one.run(pipe), early)
    ek.unwrap(pipe)
    assert torch.equal(one.run(pipe), bare)
    pipe.remove_all_hooks()
    for network in one.networks(pipe):
        network.__dict__.pop("forward")  # accelerate leaves a bound method there
    one.assert_bare(pipe)
    assert torch.equal(one.run(pipe), bare)
