"""Runs in different threads do not meet: which run is on is known per thread, not per class."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.policies import FULL, FixedExit, NeverExit, ScriptedExit
from tests.backbones import case, prediction

ROUNDS = 5
PATIENCE = 10.0  # seconds that a thread waits for the others
Job = Callable[[], Tensor]


def in_threads(jobs: dict[str, Job]) -> dict[str, list[Tensor]]:
    """Runs every job ROUNDS times, each job in its own thread."""
    results: dict[str, list[Tensor]] = {name: [] for name in jobs}
    errors: list[BaseException] = []

    def work(name: str, job: Job) -> None:
        try:
            with torch.no_grad():  # a thread-local setting
                for _ in range(ROUNDS):
                    results[name].append(job().clone())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=item) for item in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors, errors
    return results


@contextmanager
def meeting(modules: list[nn.Module], parties: int) -> Iterator[list[int]]:
    """Makes the threads wait for each other inside these modules: all runs are open at once."""
    barrier = threading.Barrier(parties, timeout=PATIENCE)
    met: list[int] = []

    def wait(*_: Any) -> None:
        met.append(threading.get_ident())
        barrier.wait()

    handles = [module.register_forward_pre_hook(wait) for module in modules]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def sequentially(jobs: dict[str, Job]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: job().clone() for name, job in jobs.items()}


def assert_as_sequential(jobs: dict[str, Job], modules: list[nn.Module]) -> None:
    expected = sequentially(jobs)
    values = list(expected.values())
    assert not any(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(values, values[1:], strict=False)
    ), "jobs with equal results would not notice each other"
    with meeting(modules, len(jobs)) as met:
        results = in_threads(jobs)
    assert len(met) == ROUNDS * len(jobs)
    assert len(set(met)) == len(jobs)
    for name, outputs in results.items():
        for output in outputs:
            assert torch.equal(output, expected[name]), name


@pytest.mark.parametrize("name", ["uvit", pytest.param("unet", marks=pytest.mark.slow), "dit"])
def test_two_wrapped_models_and_a_bare_one_of_the_same_class(name: str) -> None:
    backbone = case(name)
    models = [backbone.make(seed) for seed in range(3)]
    args, kwargs = backbone.inputs(4)
    example = ek.Inputs(*args, **kwargs)
    first, second = (ek.wrap(m, example_inputs=example) for m in models[:2])
    first.policy, second.policy = ScriptedExit((2, 3, 2, 9)), FixedExit(3)
    jobs: dict[str, Job] = {
        "first": lambda: prediction(first(*args, **kwargs)),
        "second": lambda: prediction(second(*args, **kwargs)),
        "bare": lambda: prediction(models[2](*args, **kwargs)),
    }
    # The second stage: every run is in the middle of its own blocks there.
    assert_as_sequential(jobs, [m.get_submodule(backbone.stages[1]) for m in models])


class _Global:
    """What a context variable must not be: one value for all threads."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> Any:
        before, self.value = self.value, value
        return before

    def reset(self, token: Any) -> None:
        self.value = token


def test_these_tests_notice_a_global(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _Global()
    # One of them never comes; what is caught here is the time that the others have waited.
    monkeypatch.setattr(f"{__name__}.PATIENCE", 1.0)
    monkeypatch.setattr("exitkit.execution.gate.CURRENT", shared)
    monkeypatch.setattr("exitkit.execution.executor.CURRENT", shared)
    with pytest.raises(AssertionError):
        test_two_wrapped_models_and_a_bare_one_of_the_same_class("uvit")


def test_the_backbone_itself_beside_its_wrapped_model() -> None:
    backbone = case("uvit")
    model = backbone.make()
    args, _ = backbone.inputs(3)
    other, _ = backbone.inputs(2, seed=1)
    wrapped = ek.wrap(model, example_inputs=args)
    wrapped.policy = FixedExit(2)
    jobs: dict[str, Job] = {"wrapped": lambda: wrapped(*args), "bare": lambda: model(*other)}
    assert_as_sequential(jobs, [model.in_blocks[1]])


def test_one_wrapped_model_with_two_batches_of_different_size() -> None:
    backbone = case("uvit")
    args, _ = backbone.inputs(4)
    other, _ = backbone.inputs(3, seed=1)
    wrapped = ek.wrap(backbone.make(), example_inputs=args)
    wrapped.policy = FixedExit(2)
    jobs: dict[str, Job] = {"four": lambda: wrapped(*args), "three": lambda: wrapped(*other)}
    assert_as_sequential(jobs, [wrapped.backbone.in_blocks[1]])


def test_trajectories_of_two_models() -> None:
    backbone = case("uvit")
    models = [backbone.make(seed) for seed in range(2)]
    args, _ = backbone.inputs(3)
    x, t = args
    wrapped = [ek.wrap(m, "carried", example_inputs=args) for m in models]
    for model in wrapped:
        model.heads.mark_fitted()

    def generation(model: Any, depth: int) -> Tensor:
        with model.trajectory():
            model.policy = NeverExit()
            model(x, t)
            model.policy = FixedExit(depth)
            return model(0.9 * x, t - 1)

    jobs: dict[str, Job] = {
        "early": lambda: generation(wrapped[0], 1),
        "full": lambda: generation(wrapped[1], FULL),
    }
    expected = sequentially(jobs)
    results = in_threads(jobs)
    for name, outputs in results.items():
        assert all(torch.equal(output, expected[name]) for output in outputs), name


def test_a_call_in_another_thread_does_not_join_an_open_trajectory() -> None:
    backbone = case("uvit")
    args, _ = backbone.inputs(3)
    model = ek.wrap(backbone.make(), "carried", example_inputs=args)
    model.heads.mark_fitted()
    x, t = args
    later = (0.9 * x, t - 1)

    def steps(interrupt: Callable[[], object]) -> Tensor:
        with model.trajectory():
            model.policy = NeverExit()
            model(x, t)
            interrupt()
            model.policy = FixedExit(1)
            return model(*later)

    def elsewhere() -> None:
        # Another input at the same batch size, as a second user of the same model would send.
        in_threads({"other": lambda: model(-x, t + 5)})

    with torch.no_grad():
        expected = steps(lambda: None)
        assert torch.equal(steps(elsewhere), expected)


def test_a_run_that_fails_in_one_thread_ends_there() -> None:
    backbone = case("uvit")
    models = [backbone.make(seed) for seed in range(2)]
    args, _ = backbone.inputs(3)
    wrapped = [ek.wrap(m, example_inputs=args) for m in models]
    for model in wrapped:
        model.policy = FixedExit(2)
    with torch.no_grad():
        expected = wrapped[1](*args)
        handle = models[0].in_blocks[1].register_forward_pre_hook(_boom)

        def failing() -> Tensor:
            with pytest.raises(RuntimeError, match="boom"):
                wrapped[0](*args)
            return expected

        results = in_threads({"failing": failing, "other": lambda: wrapped[1](*args)})
        handle.remove()
        assert all(torch.equal(out, expected) for out in results["other"])
        # The thread that failed has no run left over: the bare backbone still runs all blocks.
        assert torch.equal(models[0](*args), backbone.make(0)(*args))


def _boom(*_: Any) -> None:
    raise RuntimeError("boom")


def test_each_thread_reads_the_trace_of_its_own_calls() -> None:
    backbone = case("uvit")
    args, kwargs = backbone.inputs(2)
    model = ek.wrap(backbone.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))
    model.policy = ek.policies.FixedExit(1)
    model(*args, **kwargs)
    mine, theirs = model.trace.cost, []

    def other() -> None:
        assert model.trace.cost == mine  # it has called nothing yet
        with model.using(ek.policies.NeverExit()):
            model(*args, **kwargs)
        theirs.append(model.trace.cost)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert theirs == [pytest.approx(1.0)] and model.trace.cost == mine < 1
    assert copy.deepcopy(model).trace.calls  # the last of any thread
