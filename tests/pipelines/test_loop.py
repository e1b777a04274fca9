"""The denoising loop of a pipeline is one trajectory, however it begins and ends."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.errors import TrajectoryError
from exitkit.pipelines.loop import LoopWatch
from exitkit.policies import FixedExit
from tests.backbones import case as backbone_case
from tests.tiny_pipelines import STEPS, PipelineCase, case


class Stop(Exception):
    """Breaks a denoising loop off."""


def test_a_trajectory_is_one_call_of_the_pipeline() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = FixedExit(1)
    first, other = one.run(pipe), one.run(pipe, seed=1)
    assert torch.equal(one.run(pipe), first), "something was left from the call before"
    assert not torch.equal(first, other)
    assert one.run(pipe, count=1).shape[0] == 1
    assert model.trace.depth.shape == (STEPS, 2)


@pytest.mark.parametrize("one", [case("sd3"), case("prior")], ids=lambda c: c.id)
def test_a_loop_broken_off_leaves_nothing_behind(one: PipelineCase) -> None:
    """One pipeline enters its progress bar, the other iterates over it."""
    fresh, pipe = one.make(), one.make()
    for each in (fresh, pipe):
        one.wrap(each).policy = FixedExit(1)
    expected = one.run(fresh)
    held: list[BaseException] = []  # keeps the frames of the loop alive, as notebooks do

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            raise Stop
        return {}

    def let_go(*_: Any) -> dict[str, Any]:
        held.clear()
        gc.collect()
        return {}

    def broken_off(seed: int) -> None:
        try:
            one.run(pipe, seed=seed, callback_on_step_end=stop)
        except Stop as error:
            held.append(error)

    broken_off(seed=1)
    assert len(held) == 1
    assert torch.equal(one.run(pipe), expected)
    broken_off(seed=1)
    assert torch.equal(one.run(pipe, callback_on_step_end=let_go), expected)
    thread = threading.Thread(target=broken_off, args=(2,))
    thread.start()
    thread.join()
    assert torch.equal(one.run(pipe), expected)
    ek.unwrap(pipe)
    one.assert_bare(pipe)


class Bar:
    """What a pipeline's progress bar does, without printing."""

    def __init__(self, items: Any = None, total: int | None = None) -> None:
        self.items, self.total, self.count = items, total, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def update(self) -> None:
        self.count += 1

    def close(self) -> str:
        return "closed"


class Loop:
    """A pipeline that is nothing but its progress bar."""

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Bar:
        return Bar(iterable, total)


def watched() -> tuple[Loop, LoopWatch, ek.ExitModel]:
    one = backbone_case("value_branch")
    model = ek.wrap(one.make(), example_inputs=one.inputs(2)[0])
    pipe = Loop()
    return pipe, LoopWatch(pipe, {"network": model}), model


def is_open(model: ek.ExitModel) -> bool:
    """Whether a trajectory of this model is open: a second one is refused then."""
    try:
        with model.trajectory():
            return False
    except TrajectoryError:
        return True


def entered(pipe: Any, inside: list[bool], model: ek.ExitModel) -> None:
    with pipe.progress_bar(total=2) as bar:
        inside.append(is_open(model))
        bar.update()
        inside.append(is_open(model))


def iterated(pipe: Any, inside: list[bool], model: ek.ExitModel) -> None:
    inside += [is_open(model) for _ in pipe.progress_bar(range(2))]


def updated(pipe: Any, inside: list[bool], model: ek.ExitModel) -> None:
    bar = pipe.progress_bar(total=2)
    for _ in range(2):
        bar.update()
        inside.append(is_open(model))
    assert bar.count == 2 and bar.close() == "closed"


@pytest.mark.parametrize("way", [entered, iterated, updated])
def test_a_trajectory_is_open_in_the_loop_alone(way: Any) -> None:
    pipe, watch, model = watched()
    inside: list[bool] = []
    for _ in range(2):
        assert not is_open(model)
        way(pipe, inside, model)
    assert inside == [True] * 4 and not is_open(model)
    watch.remove()
    assert pipe.progress_bar is watch, "the denoiser is still wrapped"
    ek.unwrap(model)
    watch.remove()
    assert "progress_bar" not in vars(pipe)


def test_a_loop_that_never_ended_ends_with_the_next() -> None:
    pipe, _, model = watched()
    abandoned = iter(pipe.progress_bar(range(3)))
    next(abandoned)
    assert is_open(model)
    inside: list[bool] = []
    entered(pipe, inside, model)
    assert inside == [True, True] and not is_open(model)
