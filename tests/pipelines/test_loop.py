"""The denoising loop of a pipeline is one trajectory, however it begins and ends."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.errors import ConfigError, TrajectoryError
from exitkit.pipelines.loop import LoopWatch
from exitkit.policies import FixedExit, Interval, NeverExit
from tests.backbones import case as backbone_case
from tests.tiny_pipelines import STEPS, PipelineCase, case, models


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
        if held:
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


def told(action: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "exits were fitted on" in str(w.message)]


@pytest.mark.parametrize(
    "one",
    [pytest.param(case("sd"), marks=pytest.mark.slow), case("sd3"), case("wan")],
    ids=lambda c: c.id,
)
def test_another_loop_than_that_of_the_fit_is_told_once(one: PipelineCase) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe)
    sampler = one.sampler(pipe)
    for model in models(wrapped):
        model.fitted = {**sampler.describe(), "seeds": [0, 3]}
    wrapped.policy = Interval(2)
    assert told(lambda: one.run(pipe)) == []

    def few() -> None:
        pipe(**{**one.call(2), "num_inference_steps": 2})

    wrapped.policy = NeverExit()
    assert told(few) == []
    wrapped.policy = Interval(2)
    with wrapped.suspended():
        assert told(few) == []
    first = told(few)
    assert len(first) == 1
    assert f"steps=2 (fitted on {STEPS})" in first[0] and type(pipe).__name__ in first[0]
    assert told(few) == []
    # Another scheduler, or other settings of it; a sampler tells by itself, and only once.
    for model in models(wrapped):
        model.notices.clear()
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, num_train_timesteps=500
    )
    loop = told(lambda: one.run(pipe))
    assert "scheduler.num_train_timesteps=500 (fitted on 1000)" in loop[0]
    for model in models(wrapped):
        model.notices.clear()
    generated = told(lambda: ek.generate(wrapped, one.sampler(pipe), seeds=1, progress=False))
    assert len(generated) == 1 and generated[0].startswith("generate")


def test_a_network_that_was_exchanged_is_told_once() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe, "relative")
    model.policy = FixedExit(1)
    own, other = pipe.transformer, one.make().transformer
    one.run(pipe)  # warnings are errors here
    pipe.transformer = other
    with pytest.warns(UserWarning, match=r"transformer was exchanged.*runs in full.*ek.wrap"):
        full = one.run(pipe)
    one.run(pipe)
    pipe.transformer = own
    assert not torch.equal(one.run(pipe), full)
    ek.unwrap(pipe)
    assert torch.equal(one.run(pipe), full)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
@pytest.mark.parametrize("one", [case("sd3"), case("wan")], ids=lambda c: c.id)
def test_a_copy_of_a_wrapped_pipeline_leaves_early_by_itself(one: PipelineCase, way: Any) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe, "relative")
    wrapped.policy = FixedExit(1)
    early = one.run(pipe)
    for model in models(wrapped):
        model._trace = None
    twin = way(pipe)
    assert torch.equal(one.run(twin), early)
    assert all(model._trace is None for model in models(wrapped)), "the original ran"
    wrapped.policy = NeverExit()
    assert torch.equal(one.run(twin), early) and not torch.equal(one.run(pipe), early)


def shallow(pipe: Any) -> Any:
    twin = copy.copy(pipe)
    twin.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return twin


@pytest.mark.parametrize("one", [case("sd3"), case("wan")], ids=lambda c: c.id)
def test_a_shallow_copy_counts_its_own_steps(one: PipelineCase) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe)
    wrapped.policy = Interval(2)
    expected = one.run(pipe)
    steps = [[call.step for call in model.trace.calls] for model in models(wrapped)]
    twin = shallow(pipe)
    twin.set_progress_bar_config(desc="twin")
    seen: list[Any] = []
    counted = type(pipe.scheduler).step

    def step(*args: Any, **options: Any) -> Any:
        seen.append("step" in vars(twin.scheduler) and "step" not in vars(pipe.scheduler))
        return counted(twin.scheduler, *args, **options)

    twin.scheduler.step = step
    assert torch.equal(one.run(twin), expected)
    assert seen and all(seen), "the scheduler of the original was counted"
    assert [[call.step for call in model.trace.calls] for model in models(wrapped)] == steps
    ek.unwrap(twin)
    assert "progress_bar" not in vars(twin)
    one.assert_bare(pipe)


def test_copies_in_threads_do_not_count_for_each_other() -> None:
    one = case("sd3")
    pipe = one.make()
    one.wrap(pipe).policy = Interval(2)
    expected = [one.run(pipe, seed=seed) for seed in range(3)]
    meet, drawn = threading.Barrier(3), {}

    def together(*_: Any) -> dict[str, Any]:
        meet.wait(60)  # after each step, all three
        return {}

    def request(seed: int) -> None:
        drawn[seed] = one.run(shallow(pipe), seed=seed, callback_on_step_end=together)

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert torch.equal(drawn[seed], expected[seed])


def test_a_pipeline_is_held_to_what_its_denoiser_was_fitted_to_predict() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    full = one.run(pipe)
    model.predicts = "flow_prediction"  # what tasks.FlowMatching says, and a flow's scheduler
    assert torch.equal(one.run(pipe), full)
    model.predicts = "epsilon"
    with pytest.raises(ConfigError, match="FlowMatchEuler.*'flow_prediction'.*predicts 'epsilon'"):
        one.run(pipe)
    with pytest.raises(ConfigError, match="predicts 'epsilon'"):
        ek.generate(model, one.sampler(pipe), seeds=1)
    with model.suspended():  # the bare network is the user's own business
        assert torch.equal(one.run(pipe), full)
    model.predicts = None
    assert torch.equal(one.run(pipe), full)
