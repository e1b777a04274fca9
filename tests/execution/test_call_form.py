"""How networks are called: by position, by name, and inside the one mapping that they take."""

from __future__ import annotations

from collections import OrderedDict
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ConfigError, DoubtWarning
from exitkit.execution.call_form import CallForm
from exitkit.policies import FULL, FixedExit, StepSchedule
from exitkit.testing import check_backbone
from exitkit.training.tasks import Noise
from tests.training.test_carried import SHAPE, Net


class OfOneMapping(nn.Module):
    """The network of `forward(x, t, labels)` behind a forward that takes one mapping."""

    def __init__(self, time: str = "t") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.time = Net(), time

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.net(batch["x"], batch[self.time], batch.get("labels"))
        return out


class OfKeywords(OfOneMapping):
    """The same behind keywords without names of their own."""

    def forward(self, **batch: Tensor) -> Tensor:
        return super().forward(batch)


def batch(time: str = "t", rows: int = 2, **more: Any) -> dict[str, Any]:
    return {"x": torch.randn(rows, *SHAPE), time: torch.tensor([10.0, 500.0, 77.0])[:rows], **more}


def test_a_network_without_a_plan_gets_input_and_time_in_front():
    x, t = torch.randn(2, 3), torch.ones(2)
    given = CallForm().arguments(x, t, label=1)
    assert given.args == (x, t) and given.kwargs == {"label": 1} and CallForm().leads
    named = CallForm("latents", "time").arguments(x, t, label=1)
    assert named.args == () and named.kwargs == {"latents": x, "time": t, "label": 1}
    assert CallForm(timed=False).arguments(x, t).args == (x,)
    assert not CallForm("latents", "time").leads and not CallForm(timed=False).leads


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_input_and_timestep_are_found_inside_a_mapping(kind: Any) -> None:
    plan = ek.inspect(OfOneMapping(), example_inputs=(kind(batch()),))
    assert (plan.noisy, plan.timestep, plan.doubts) == ("batch.x", "batch.t", ())
    # Control: of the network behind it the same exits, by plain names.
    bare = ek.inspect(Net(), example_inputs=tuple(batch().values()))
    assert (bare.noisy, bare.timestep) == ("x", "t")
    assert [b.share for b in bare.boundaries] == pytest.approx([b.share for b in plan.boundaries])
    keywords = ek.inspect(OfKeywords(), example_inputs=batch())
    assert (keywords.noisy, keywords.timestep) == ("batch.x", "batch.t")


def test_a_timestep_of_another_name_is_declared_by_its_path() -> None:
    net = OfOneMapping("when")
    whole = batch("when") | {"when": torch.tensor([10, 500])}
    with pytest.warns(DoubtWarning, match=r"no timestep was found: 'batch.when' may be timesteps"):
        ek.unwrap(ek.wrap(net, "relative", example_inputs=(whole,)))
    declared = ek.Adapter("mine", lambda _: True, noisy="batch.x", timestep="batch.when")
    model = ek.wrap(net, "relative", example_inputs=(whole,), adapter=declared)
    assert (model.plan.noisy, model.plan.timestep) == ("batch.x", "batch.when")
    ek.unwrap(model)
    wrong = ek.Adapter("mine", lambda _: True, timestep="batch.wen")
    with pytest.raises(ConfigError, match=r"nor inside one .*Did you mean 'batch.when'"):
        ek.wrap(net, "relative", example_inputs=(whole,), adapter=wrong)


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_the_contract_holds_for_forwards_of_one_mapping(preset: str) -> None:
    check_backbone(OfOneMapping(), (batch(rows=3),), config=preset, atol=1e-5)


@pytest.mark.parametrize("net", [OfOneMapping, OfKeywords])
@pytest.mark.parametrize("preset", ["relative", "carried", "completion"])
def test_samples_are_those_of_the_network_behind(net: Any, preset: str) -> None:
    """Fit, generate and calibrate as with plain arguments, conditions inside the mapping."""
    labels = torch.tensor([1, 2])
    inside = batch(labels=labels)
    example = ek.Inputs(**inside) if net is OfKeywords else ek.Inputs(inside)
    conditions = {"labels": torch.arange(5)}
    sampler = ek.Sampler("ddim", SHAPE, 6, conditions=conditions)
    want = ek.generate(OfOneMapping().net, sampler, seeds=3).samples

    model = ek.wrap(net(), preset, example_inputs=example)
    assert torch.equal(ek.generate(model, sampler, seeds=3).samples, want)
    model.policy = StepSchedule((FULL, FULL, 0 if preset == "completion" else 1) * 2)
    ek.fit(model, ek.Rollouts(model, sampler, 4), steps=1, progress=False)
    plain = ek.wrap(OfOneMapping().net, preset, example_inputs=tuple(inside.values()))
    plain.heads.load_state_dict(model.heads.state_dict())
    plain.policy = model.policy
    found = ek.generate(model, sampler, seeds=3)
    torch.testing.assert_close(found.samples, ek.generate(plain, sampler, seeds=3).samples)
    assert not torch.equal(found.samples, want) and found.trace.depth.min() < 2


def test_batches_of_a_task_become_mappings() -> None:
    model = ek.wrap(OfOneMapping(), "paper", example_inputs=(batch(labels=torch.tensor([1, 2])),))
    loader = [{"image": torch.randn(2, *SHAPE), "labels": torch.tensor([0, 4])}]
    seen: list[dict[str, dict[str, Tensor]]] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(dict(zip(["batch"], args, strict=False)) | kwargs)

    handle = model.backbone.register_forward_pre_hook(look, with_kwargs=True)
    ek.fit(model, loader, Noise(DDIMScheduler()), steps=1, progress=False)
    handle.remove()
    assert {*seen[0]["batch"]} == {"x", "t", "labels"}
    model.policy = FixedExit(1)
    assert model(batch()).shape == (2, *SHAPE)


def test_mappings_inside_mappings_and_keywords() -> None:
    x, t = torch.randn(2, 3), torch.ones(2)
    plan = ek.inspect(OfOneMapping(), example_inputs=(batch(),))

    class Deep(nn.Module):
        def forward(self, batch: Any, scale: float = 1.0) -> None: ...

    parameters = signature(Deep().forward).parameters
    form = CallForm("batch.inner.x", "batch.t", True, None, parameters)
    made = form.arguments(x, t, label=1, scale=2.0).kwargs
    assert made == {"batch": {"inner": {"x": x, "label": 1}, "t": t}, "scale": 2.0}
    assert not form.leads and CallForm.of(plan, OfOneMapping().forward).parameters
