"""A pipeline that is called in the callback of another call is a trajectory of its own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.errors import TrajectoryError
from exitkit.policies import Interval
from tests.pipelines.test_loop import Stop, is_open, shallow
from tests.pipelines.test_same_parts import from_pipe, steps
from tests.tiny_pipelines import PipelineCase, case, models


def itself(pipe: Any) -> Any:
    """The same pipeline."""
    return pipe


def own_scheduler(pipe: Any) -> Any:
    """Another pipeline over the same parts, which nobody watches yet; its scheduler is its own."""
    other = from_pipe(pipe)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


def nesting(make: Callable[[], Any], one: PipelineCase, inner: list[Tensor]) -> Any:
    """A callback that draws another sample after each step."""

    def callback(*_: Any) -> dict[str, Any]:
        inner.append(one.run(make(), count=2, seed=1))
        return {}

    return callback


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (case("sd3"), shallow),
        (case("sd3"), own_scheduler),
        (case("wan"), own_scheduler),
        pytest.param(case("sd"), itself, marks=pytest.mark.slow),  # DDIM keeps nothing of a run
        pytest.param(case("sd"), from_pipe, marks=pytest.mark.slow),
        pytest.param(case("prior"), shallow, marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "id", None) or x.__name__,
)
def test_a_call_in_a_callback(one: PipelineCase, other: Callable[[Any], Any]) -> None:
    pipe = one.make()
    bare = one.run(pipe)
    wrapped = one.wrap(pipe)
    wrapped.policy = Interval(2)
    expected, within = one.run(pipe), one.run(pipe, seed=1)
    counted = steps(wrapped)
    assert not torch.equal(expected, bare), "the control: nobody left early"
    inner: list[Tensor] = []
    nested = one.run(pipe, callback_on_step_end=nesting(lambda: other(pipe), one, inner))
    assert len(inner) > 1 and all(torch.equal(each, within) for each in inner)
    assert torch.equal(nested, expected)
    assert steps(wrapped) == counted, "the accounts are those of the call that ended last"
    assert not any(is_open(model) for model in models(wrapped))
    assert torch.equal(one.run(pipe), expected)


@pytest.mark.parametrize("other", [shallow, own_scheduler])
def test_a_nested_call_that_breaks_off(other: Callable[[Any], Any]) -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    expected = one.run(pipe)
    held: list[BaseException] = []  # keeps the frames of the inner loop alive

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            raise Stop
        return {}

    def callback(*_: Any) -> dict[str, Any]:
        try:
            one.run(other(pipe), seed=1, callback_on_step_end=stop)
        except Stop as error:
            held.append(error)
        return {}

    assert torch.equal(one.run(pipe, callback_on_step_end=callback), expected)
    assert len(held) > 1 and not is_open(model)


def test_three_deep() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    expected = [one.run(pipe, seed=seed) for seed in range(3)]
    drawn: dict[int, Tensor] = {}

    def run(seed: int) -> None:
        def callback(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 0 and seed < 2:
                run(seed + 1)
            return {}

        drawn[seed] = one.run(shallow(pipe), seed=seed, callback_on_step_end=callback)

    run(0)
    assert all(torch.equal(drawn[seed], expected[seed]) for seed in range(3))
    assert not is_open(model)


def test_a_call_in_a_callback_under_a_trajectory_of_the_user() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    expected, inner = one.run(pipe), list[Tensor]()
    with model.trajectory():
        nested = one.run(pipe, callback_on_step_end=nesting(lambda: shallow(pipe), one, inner))
        assert is_open(model)
    assert torch.equal(nested, expected) and not is_open(model)


def test_a_thread_that_takes_the_context_along() -> None:
    """As `asyncio.to_thread` does: the loop of the caller is not the thread's to end."""
    one = case("sd3")
    pipe = one.make()
    one.wrap(pipe).policy = Interval(2)
    expected, within = one.run(pipe), one.run(pipe, seed=1)
    inner: list[Tensor] = []

    def callback(*_: Any) -> dict[str, Any]:
        context = contextvars.copy_context()

        def work() -> None:
            inner.append(context.run(one.run, shallow(pipe), seed=1))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return {}

    assert torch.equal(one.run(pipe, callback_on_step_end=callback), expected)
    assert len(inner) > 1 and all(torch.equal(each, within) for each in inner)


def test_what_a_sampler_drives_is_not_called_in_its_callback() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    inner: list[Tensor] = []
    sampler = one.sampler(pipe, callback_on_step_end=nesting(lambda: shallow(pipe), one, inner))
    for run in (
        lambda: ek.generate(model, sampler, seeds=1, progress=False),
        lambda: ek.fit(model, sampler, steps=1, progress=False),
    ):
        with pytest.raises(TrajectoryError, match="StableDiffusion3Pipeline.*sampler drives"):
            run()
        assert not is_open(model)
    assert inner == []


def test_a_sampler_in_a_callback_is_refused() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    sampler = one.sampler(shallow(pipe))

    def callback(*_: Any) -> dict[str, Any]:
        ek.generate(model, sampler, seeds=1, progress=False)
        return {}

    with pytest.raises(TrajectoryError, match="open already"):
        one.run(pipe, callback_on_step_end=callback)
    assert not is_open(model)
