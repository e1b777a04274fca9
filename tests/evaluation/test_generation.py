"""Who runs against whom where samples are generated."""

from __future__ import annotations

import pytest

import exitkit as ek
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.generation import SampledSet
from exitkit.evaluation.metrics import Metrics
from exitkit.policies import (
    FixedExit,
    NeverExit,
    Patience,
    StepSchedule,
    TimestepSchedule,
)
from exitkit.sampling.rollouts import Rollouts
from tests.evaluation.models import STEPS, backbone, sampler, some_leave, wrapped
from tests.training import test_completion as completion


@pytest.fixture(scope="module")
def relative():
    return wrapped("relative")


def lined_up(entries, bare, steps=STEPS):
    ground = SampledSet({"DDIM": sampler(steps, batch_size=2)}, (0, 1), Metrics())
    rivals, notes = ground.line_up(entries, bare)
    assert notes == []
    return rivals


def test_static_policies_are_not_compared_with_themselves(relative):
    schedule = TimestepSchedule((500.0,), (5, 2))
    entries = [
        Entry("schedule", relative, schedule),
        Entry("fixed", relative, FixedExit(2)),
        Entry("never", relative, NeverExit()),
    ]
    rivals = lined_up(entries, relative.backbone)
    assert {r.kind for r in rivals} == {"full", "policy", "fewer steps"}
    never = next(r for r in rivals if r.name == "never")
    assert never.opponent is None, "fewer steps at full cost are the full run"


def test_one_decision_for_a_batch_is_no_static_policy(relative):
    """Rows agree by design: the next batch may leave elsewhere."""
    batch = Patience(1, 1e9, whole_batch=True)
    rivals = lined_up([Entry("batch", relative, batch)], relative.backbone)
    assert [r.kind for r in rivals][:4] == ["full", "policy", "mode schedule", "fixed exit"]
    (schedule,) = (r for r in rivals if r.name == "batch, its schedule")
    # Negative control: the very same depths, as a plan, are static.
    rivals = lined_up([Entry("plan", relative, schedule.policy)], relative.backbone)
    assert {r.kind for r in rivals} == {"full", "policy", "fewer steps"}


def test_fine_tuned_networks_also_run_without_exits():
    rivals = lined_up([Entry("paper", wrapped("paper"), FixedExit(2))], backbone(), steps=2)
    row = next(r for r in rivals if r.kind == "no exit")
    assert row.name == "paper, no exit" and row.policy == NeverExit()
    assert row.opponent is None


def test_pilot_seeds_are_other_seeds():
    ground = SampledSet({"DDIM": sampler(batch_size=16)}, tuple(range(5, 50)), Metrics())
    assert not set(ground.pilot_seeds) & set(ground.seeds)
    assert len(ground.pilot_seeds) == 16


def test_entries_choose_their_static_opponents(relative):
    policy = some_leave(relative)
    for static, tails in (
        (True, {"mode schedule", "fixed exit"}),
        ("schedule", {"mode schedule"}),
        ("fixed exit", {"fixed exit"}),
        (False, set()),
    ):
        rivals = lined_up([Entry("mine", relative, policy, static=static)], relative.backbone)
        assert {r.kind for r in rivals} - {"full", "policy", "fewer steps"} == tails


def test_steps_that_are_completed_are_compared_without_exits() -> None:
    _, model = completion.wrapped()
    model.policy = StepSchedule.completing(completion.STEPS, completion.FULLS)
    sampler = completion.sampler()
    ek.fit(model, Rollouts(model, sampler, seeds=4), progress=False)
    found = ek.compare([ek.Entry("completed", model)], sampler, seeds=4, progress=False)
    row = next(row for row in found.rows if row.name == "completed")
    assert row.cost < 1 and "completed" in str(found) and not found.errors
