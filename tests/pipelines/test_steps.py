"""Steps are those of the scheduler, whatever its timesteps do."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import diffusers as d
import pytest
import torch

import exitkit as ek
from exitkit.pipelines.steps import StepCounter, count_steps, planned_steps, scheduler_of
from exitkit.policies import FULL, StepSchedule
from tests.tiny_pipelines import case, models

COUNTS = {
    "DDIM": 10,
    "HeunDiscrete": 19,
    "KDPM2Discrete": 19,
    "KDPM2AncestralDiscrete": 19,
    "PNDM": 19,
}
"""Calls of `scheduler.step` for 10 steps; PNDM begins with Runge-Kutta."""


def stepped(scheduler: Any) -> None:
    scheduler.set_timesteps(3)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)


def test_steps_are_counted_and_the_scheduler_is_given_back() -> None:
    scheduler, ended = d.DDIMScheduler(), []
    before = inspect.signature(scheduler.step)
    counter = count_steps(scheduler, lambda: ended.append(1))
    assert counter is not None and inspect.signature(scheduler.step) == before
    stepped(scheduler)
    assert counter.count == len(ended) == 3 and counter.latents.shape == (1, 1, 2, 2)
    counter.remove()
    assert "step" not in vars(scheduler)
    stepped(scheduler)
    assert len(ended) == 3


def test_counters_over_each_other_go_in_any_order() -> None:
    scheduler = d.DDIMScheduler()
    first, second = StepCounter(scheduler, list), StepCounter(scheduler, list)
    first.remove()
    stepped(scheduler)
    assert (first.count, second.count) == (0, 3)
    second.remove()
    assert "step" not in vars(scheduler)


def test_a_copy_of_the_scheduler_steps_itself() -> None:
    scheduler = d.DDIMScheduler()
    counter = StepCounter(scheduler, list)
    copied = copy.deepcopy(scheduler)
    stepped(copied)
    assert counter.count == 0 and copied.step.__self__ is copied
    stepped(scheduler)
    assert counter.count == 3


def test_what_cannot_be_counted() -> None:
    assert count_steps(None, list) is None
    assert scheduler_of(SimpleNamespace(components={"vae": None})) is None
    own = d.DDIMScheduler()
    assert scheduler_of(SimpleNamespace(components={"prior_scheduler": own})) is own


@pytest.mark.parametrize(
    ("left", "begin", "order", "total", "planned"),
    [
        (10, 0, 1, 10, 10),
        (19, 0, 2, 10, 19),
        (10, 4, 1, 6, 6),
        (11, 0, 1, 10, None),
        (9, 0, 1, 10, 9),
    ],
)
def test_steps_that_a_loop_will_make(
    left: int, begin: int, order: int, total: int, planned: int | None
) -> None:
    scheduler = SimpleNamespace(timesteps=torch.zeros(left), begin_index=begin, order=order)
    assert planned_steps(scheduler, total) == planned
    assert planned_steps(scheduler, None) is None and planned_steps(None, total) == total


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    # Solvers of KDPM2 call twice a step, as Heun's.
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("KDPM2")) for n in COUNTS],
)
def test_solvers_with_calls_between_steps(name: str) -> None:
    one = case("sd")
    pipe = one.make()
    pipe.scheduler = getattr(d, f"{name}Scheduler").from_config(pipe.scheduler.config)
    model = one.wrap(pipe)
    full, steps = len(model.exits) + 1, COUNTS[name]
    wanted = (full,) * 3 + (1,) * (steps - 3)
    model.policy = StepSchedule(wanted)
    pipe(**one.call(1) | {"num_inference_steps": 10})
    assert [int(row.max()) for row in model.trace.depth] == list(wanted)
    assert [call.step for call in model.trace.calls] == list(range(steps))
    assert "step" not in vars(pipe.scheduler)


def test_timesteps_that_round_to_one_are_steps() -> None:
    one = case("flux")
    pipe = one.make().to(torch.bfloat16)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=7.0)
    call = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in one.call(1).items()}
    call |= {"true_cfg_scale": 1.0, "num_inference_steps": 50}
    model = ek.wrap(pipe, "carried", example_inputs=call)
    model.heads.mark_fitted(uncertainty=False)
    full = len(model.exits) + 1
    wanted = [full, *[1] * 24, *[full] * 25]
    model.policy = StepSchedule(tuple(FULL if depth == full else depth for depth in wanted))
    pipe(**call)
    times = model.trace.timesteps
    assert bool((times[1:] == times[:-1]).any()), "two of them do round to one"
    assert model.trace.depth.flatten().tolist() == wanted


def test_experts_count_the_steps_of_both() -> None:
    one = case("wan")
    pipe = one.make()
    wrapped = one.wrap(pipe)
    high, low = models(wrapped)
    wrapped.policy = StepSchedule((FULL, 1, FULL, 1))
    one.run(pipe, 1)
    assert [(c.step, c.branch) for c in high.trace.calls] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(c.step, c.branch) for c in low.trace.calls] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    for model in (high, low):
        assert (model.trace.depth <= model.trace.exits).flatten().tolist() == [False] * 2 + [
            True
        ] * 2
