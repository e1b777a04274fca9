"""Denoising loops that are under way in a thread or task.

A pipeline may be called in the callback of another call, also of its own: the inner loop gets trajectories
of its own, and the outer ones go on afterwards. What tells an outer loop from one that was broken off is
the call stack: the call that it belongs to is still on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from types import FrameType
from typing import Any

from torch import nn

from exitkit.errors import TrajectoryError
from exitkit.execution.trajectory import Trajectory, opened, trajectory_of
from exitkit.model import ExitModel
from exitkit.modes.compiled import uncompiled
from exitkit.pipelines.routes import Answer, route_of
from exitkit.pipelines.steps import StepCounter, count_steps


class OpenLoop:
    """A loop that has begun: the trajectories of its denoisers, and what counts its steps.

    Arguments:
        name: Class of the pipeline.
        models: Its wrapped denoisers.
        call: The call that the loop belongs to; None if it is not known, and the loop is over when
            another one begins.
        bar: Its progress bar; None of a loop that was met on its way.
    """

    def __init__(
        self,
        name: str,
        models: Iterable[ExitModel],
        call: FrameType | None,
        bar: object | None = None,
    ) -> None:
        self.name, self.models = name, list(models)
        self._trajectories: list[tuple[ExitModel, Trajectory]] = []
        self._routes: dict[ExitModel, Answer | None] = {}
        self._stack = ExitStack()
        self._counter: StepCounter | None = None
        # A frame that is held would hold all that the pipeline works on.
        self._call = None if call is None else id(call)
        self._thread = threading.get_ident()
        self._bar: Callable[[], object] = object if bar is None else weakref.ref(bar)

    def is_around(self, frame: FrameType | None) -> bool:
        """Whether a call is made within the one that this loop belongs to.

        Arguments:
            frame: Where the call is made.
        """
        return any(id(each) == self._call for each in _stack(frame))

    def goes_on(self, frame: FrameType | None) -> bool:
        """Whether this loop goes on behind a call: of any other, nobody will tell that it has ended.

        Arguments:
            frame: Where the call is made.
        """
        if self._thread != threading.get_ident():
            return True  # of whoever handed its context on
        return self._bar() is not None and self.is_around(frame)

    def begin(self, steps: int | None) -> None:
        """Opens a trajectory of every denoiser; one of the user's, open already, begins anew.

        Arguments:
            steps: How many steps are planned, or None.

        Raises:
            TrajectoryError: If a sampler drives the loop around this one.
        """
        outer = loops_of(self.models)
        self._routes = {model: route_of(model.backbone) for model in self.models}
        routes = [
            (loop._routes.get(model), r) for loop in outer for model, r in self._routes.items()
        ]
        if any(now is not None and now is then for then, now in routes):
            raise TrajectoryError(
                f"{self.name}: called within a call that a sampler drives, which would take its steps for "
                "those of the sample. Call it behind ek.generate and its like, or give the callback to "
                "the pipeline itself."
            )
        taken = [trajectory for loop in outer for _, trajectory in loop._trajectories]
        for model in self.models:
            if not model._executor.suspended:
                model._trace = None  # of an earlier trajectory
            running = trajectory_of(model)
            if running is None or any(running is each for each in taken):
                running = self._stack.enter_context(opened(model, steps, nested=True))
            else:
                running.reset()
                running.steps = steps if running.steps is None else running.steps
            self._trajectories.append((model, running))
        _OPEN.set((*_OPEN.get(), self))

    def count(self, scheduler: Any, last: int | None = None) -> None:
        """Counts the steps of a scheduler from now on.

        Arguments:
            scheduler: The scheduler.
            last: The step that ends the loop, where no bar tells.
        """
        made = 0

        def ended() -> None:
            nonlocal made
            mine = [t for model, t in self._trajectories if trajectory_of(model) is t]
            if not mine:
                return  # another thread steps the same scheduler, or another loop within this one
            for trajectory in mine:
                trajectory.end_step()
            made += 1
            if made == last:
                self.end()

        self._counter = count_steps(scheduler, ended)

    def stop_counting(self) -> None:
        """Gives the scheduler its own `step` back; from any thread."""
        if self._counter is not None:
            self._counter.remove()

    def end(self) -> None:
        """Closes what it has opened, and what has begun within it; elsewhere it only stops counting."""
        self.stop_counting()
        if not any(loop is self for loop in _OPEN.get()):
            return
        for loop in loops_of(self.models):
            if loop is self:
                break
            loop.end()
        _OPEN.set(tuple(loop for loop in _OPEN.get() if loop is not self))
        self._stack.close()
        for model, trajectory in self._trajectories:
            if trajectory.trace is not None and model._trace is not trajectory.trace:
                model._trace = trajectory.trace  # not that of a loop within this one


_OPEN: ContextVar[tuple[OpenLoop, ...]] = ContextVar("exitkit_loops", default=())
"""Per thread and task, the innermost last."""


def loops_of(models: Iterable[ExitModel]) -> list[OpenLoop]:
    """Open loops in which one of some models runs, the innermost first.

    Arguments:
        models: The models.
    """
    wanted = {id(model) for model in models}
    return [
        loop for loop in reversed(_OPEN.get()) if any(id(model) in wanted for model in loop.models)
    ]


def end_broken_off(models: Iterable[ExitModel], frame: FrameType | None) -> None:
    """Ends the loops of some models that have not ended and do not go on.

    Arguments:
        models: The models.
        frame: Where the call is made in which another loop begins.
    """
    for loop in loops_of(models):
        if not loop.goes_on(frame):
            loop.end()


def caller_without_loop(model: ExitModel, frame: FrameType) -> Any:
    """The pipeline that calls a denoiser and has opened no loop; None where a loop or trajectory is open.

    Loops that were broken off within the one that goes on are ended on the way.

    Arguments:
        model: The wrapped denoiser.
        frame: Where it is called.
    """
    loops = loops_of([model])
    if not loops:
        return None if trajectory_of(model) is not None else holder(model.backbone, frame)
    around = next((loop for loop in loops if loop.is_around(frame)), None)
    if around is None:
        return None
    for loop in loops:
        if loop is around:
            break
        loop.end()
    return holder(model.backbone, frame, until=around)


def call_of(pipe: Any, frame: FrameType) -> FrameType | None:
    """The call of a pipeline on the call stack, or another method of it; None where there is none.

    Arguments:
        pipe: The pipeline.
        frame: Where to begin.
    """
    methods = [each for each in _stack(frame) if _self_of(each) is pipe]
    calls = (each for each in methods if each.f_code.co_name == "__call__")
    return next(calls, methods[0] if methods else None)


def holder(backbone: nn.Module, frame: FrameType | None, until: OpenLoop | None = None) -> Any:
    """The pipeline on the call stack that holds a network; None where there is none.

    Arguments:
        backbone: The network.
        frame: Where to begin.
        until: A loop whose call ends the search. It is made for every call of a network, so that only
            frames named as a pipeline's call are looked at.
    """
    for each in _stack(frame):
        if until is not None and id(each) == until._call:
            return None
        if until is not None and each.f_code.co_name != "__call__":
            continue
        asks = _self_of(each)
        if callable(getattr(type(asks), "progress_bar", None)):
            held = (x for x in vars(asks).values() if isinstance(x, nn.Module))
            if any(uncompiled(module) is backbone for module in held):
                return asks
    return None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _self_of(frame: FrameType) -> Any:
    """What a method is called on; None in a frame of something else."""
    return frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
