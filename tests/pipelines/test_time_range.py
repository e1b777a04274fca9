"""A flow's first timestep is 1.0: the scheduler says of what range."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.pipelines.time_range import with_time_range
from exitkit.surgery.adapter import Adapter
from tests.tiny_pipelines import case


class Net(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x


def scheduler(*times: float) -> SimpleNamespace:
    return SimpleNamespace(
        timesteps=torch.tensor(times), config=SimpleNamespace(num_train_timesteps=1000)
    )


def ranged(value: float, first: float, adapter: Adapter | None = None) -> Adapter | None:
    inputs = ek.Inputs(torch.randn(2, 3), timestep=torch.full((2,), value))
    return with_time_range(adapter, Net(), inputs, scheduler(first, 1.0))


@pytest.mark.parametrize(("first", "end"), [(1000.0, 1.0), (1.0, 1000.0)])
def test_what_the_pipeline_makes_of_the_schedulers_timestep(first: float, end: float) -> None:
    found = ranged(1.0, first)
    assert found is not None and found.timestep_range == (0.0, end)


def test_schedulers_of_fractions_need_no_count() -> None:
    inputs = ek.Inputs(torch.randn(2, 3), torch.ones(2))
    fractions = SimpleNamespace(timesteps=torch.tensor([1.0, 0.5, 0.1]))
    found = with_time_range(None, Net(), inputs, fractions)
    assert found is not None and found.timestep_range == (0.0, 1.0)


def test_nothing_is_declared_where_a_call_tells() -> None:
    assert ranged(999.0, 999.0) is None and ranged(0.9, 900.0) is None
    named = Adapter("mine", lambda _: True, timestep="timestep")
    assert ranged(0.9, 900.0, named) is named
    own = Adapter("mine", lambda _: True, timestep_range=(1.0, 0.0))
    assert ranged(1.0, 1000.0, own) is own, "a declared range stays"
    mine = ranged(1.0, 1000.0, named)
    assert mine is not None and (mine.timestep, mine.timestep_range) == ("timestep", (0.0, 1.0))


def test_a_scheduler_that_does_not_count_says_nothing() -> None:
    inputs = ek.Inputs(torch.randn(2, 3), torch.ones(2))
    for other in (None, SimpleNamespace(timesteps=None), scheduler(0.0)):
        assert with_time_range(None, Net(), inputs, other) is None


@pytest.mark.parametrize("name", ["flux", "prior"])
@pytest.mark.filterwarnings("ignore:.*has been deprecated:FutureWarning")
def test_flows_in_their_pipelines_have_the_range_of_a_flow(name: str) -> None:
    one = case(name)
    pipe = one.make()
    model = ek.wrap(pipe, "relative", example_inputs=one.call(1))
    assert model.plan.timestep_scale == 1000.0 and model.plan.doubts == ()
    ek.unwrap(pipe)
