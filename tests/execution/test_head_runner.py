"""Heads of one forward: what they say of some rows, and what it costs."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.execution.calls import Call
from exitkit.execution.exits import ExitLayout
from exitkit.execution.head_runner import HeadRunner
from tests.backbones import case


@pytest.fixture
def parts():
    backbone = case("tuple_blocks")
    args, _ = backbone.inputs(4)
    model = ek.wrap(backbone.make(), "relative", example_inputs=args)
    model.heads.mark_fitted()
    layout = ExitLayout.of(model.plan, model.heads)
    replayed = []

    def replay(point, value, rows):
        replayed.append((point.index, rows.tolist()))
        return value

    call = Call(4, args[0], args[1].float(), (), replay, lambda: None)
    return model, layout, HeadRunner(layout, call, None), replayed


def test_some_rows_get_what_they_would_get_alone(parts):
    model, layout, runner, _ = parts
    record = model.record(runner.call.noisy, runner.call.timestep)
    point, rows = layout.points[1], torch.tensor([3, 1])
    hidden = record.hidden[2]
    with torch.no_grad():
        every = runner.uncertainty(point, hidden, runner.everyone)
        some = runner.uncertainty(point, hidden[rows], rows)
        direct = point.uncertainty(
            hidden, layout.embed(runner.call.timestep), layout.size_of(runner.call.noisy)
        )
    torch.testing.assert_close(every, direct)
    torch.testing.assert_close(some, every[rows], rtol=1e-5, atol=1e-6)
    assert torch.equal(runner.timestep(rows), runner.call.timestep[rows])


def test_every_question_is_paid_for(parts):
    model, layout, runner, replayed = parts
    point, rows = layout.points[0], torch.tensor([0, 2])
    hidden = model.record(runner.call.noisy, runner.call.timestep).hidden[1][rows]
    with torch.no_grad():
        runner.uncertainty(point, hidden, rows)
        assert runner.macs == 2 * point.uncertainty_macs
        runner.predict(point, hidden, rows)
    paid = point.uncertainty_macs + point.output_macs + layout.glue_macs
    assert runner.macs == pytest.approx(2 * paid) and replayed == [(1, [0, 2])]


def test_without_a_trajectory_nothing_is_remembered(parts):
    _, layout, runner, _ = parts
    point = layout.points[0]
    assert runner.memory(point) is None and runner.state(point, runner.everyone) is None
    assert runner.ready(point, runner.everyone) is None, "plain exits take all rows"


def test_a_backbone_without_timestep_is_at_time_zero(parts):
    _, _, runner, _ = parts
    runner.call.timestep = None
    assert runner.timestep(torch.tensor([2, 1])).tolist() == [0.0, 0.0]


def test_hooks_on_a_head_see_what_a_run_reads(parts):
    model, layout, runner, _ = parts
    point = layout.points[1]
    hidden = model.record(runner.call.noisy, runner.call.timestep).hidden[2]
    before, seen = runner.uncertainty(point, hidden, runner.everyone), []
    hook = point.uncertainty.register_forward_hook(lambda *given: seen.append(given[2]))
    hooked = runner.uncertainty(point, hidden, runner.everyone)
    hook.remove()
    runner.uncertainty(point, hidden, runner.everyone)
    assert len(seen) == 1 and torch.equal(seen[0], before) and torch.equal(hooked, before)
