"""Accounts: depths from 0, calls of any number of rows, sums that no order changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.errors import ShapeError
from exitkit.execution.trace import Trace, TracedCall
from exitkit.policies import NeverExit, ScriptedExit
from tests.backbones import case
from tests.copies import copies


def call(depth: list[int], timestep: float = 5.0, step: int = 0, branch: int = 0) -> TracedCall:
    return TracedCall(step, branch, torch.tensor(depth), 10.0 * sum(depth), torch.tensor(timestep))


def trace(*calls: TracedCall) -> Trace:
    return Trace(2, (math.nan, 1, 3, 4), list(calls), full_macs=100.0 * len(calls))


def test_layers_are_indexed_by_depth() -> None:
    one = trace(call([1, 2]), call([3, 3]))
    assert one.depth.tolist() == [[1, 2], [3, 3]] and one.steps == 2
    assert one.layer_ratio == (1 + 3 + 4 + 4) / 4 / 4
    assert one.histogram().tolist() == [[0, 1, 1, 0], [0, 0, 0, 2]]
    assert one.cost == (30 + 60) / 200
    assert math.isnan(trace(call([0, 1])).layer_ratio), "depth 0 has no layers to speak of"


def test_calls_of_several_sizes_are_kept_and_said() -> None:
    one = trace(call([1, 2]))
    one.extend(trace(call([3])))
    assert [c.rows for c in one.calls] == [2, 1] and one.layer_ratio == (1 + 3 + 4) / 3 / 4
    with pytest.raises(ShapeError, match=r"1, 2 rows.*trace\.calls"):
        _ = one.depth
    assert "2 steps, 1 or 2 rows" in str(one)


def test_traces_of_other_rows_stand_side_by_side() -> None:
    first, second = trace(call([1], 9.0), call([2], 8.0)), trace(call([3], 9.0), call([3], 8.0))
    first.uncertainty, second.uncertainty = {(0, 1): 0.2}, {(0, 1): 0.4, (1, 1): 0.5}
    joined = Trace.join([first, second])
    assert joined.depth.tolist() == [[1, 3], [2, 3]]
    assert joined.macs == first.macs + second.macs
    assert joined.timesteps.tolist() == [9.0, 8.0]
    assert joined.uncertainty == {(0, 1): pytest.approx(0.3), (1, 1): 0.5}


def test_the_share_of_the_timestep_is_that_of_the_variance() -> None:
    assert trace(call([1, 1], 9.0), call([3, 3], 8.0)).timestep_share() == 1.0
    assert trace(call([1, 3], 9.0), call([1, 3], 8.0)).timestep_share() == 0.0
    assert math.isnan(trace(call([2, 2])).timestep_share())


@copies
def wrapped() -> tuple[ek.ExitModel, tuple[Tensor, Tensor]]:
    args = torch.randn(3, 3, 8, 8), torch.tensor([10, 500, 900])
    return ek.wrap(case("uvit").make(), "relative", example_inputs=args), args


def test_a_model_books_each_call() -> None:
    model, args = wrapped()
    last = len(model.exits) + 1
    model.policy = ScriptedExit((1, 2, last))
    with model.trajectory():
        model(*args)
        model(*args)  # the same timestep: another branch of the step
        model(args[0], args[1] - 5)
    assert [(c.step, c.branch) for c in model.trace.calls] == [(0, 0), (0, 1), (1, 0)]
    assert model.trace.depth.tolist() == [[1, 2, last]] * 3
    assert len(model.trace.layers) == last + 1 and math.isnan(model.trace.layers[0])
    ran = sum(model.trace.block_rows.values()) / (3 * 3 * model.plan.num_stages)
    assert model.trace.layer_ratio == pytest.approx(ran)
    model.policy = NeverExit()
    model(*args)
    assert model.trace.cost == 1.0
