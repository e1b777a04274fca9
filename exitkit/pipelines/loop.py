"""The denoising loop of a pipeline as a trajectory."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from torch import nn

from exitkit.model import ExitModel
from exitkit.modes.compiled import uncompiled
from exitkit.pipelines.open_loops import OpenLoop, call_of, caller_without_loop, end_broken_off
from exitkit.pipelines.routes import is_routed
from exitkit.pipelines.steps import planned_steps, scheduler_of
from exitkit.sampling.fitted import warn_other_loop


class LoopWatch:
    """Replaces `progress_bar` on a pipeline: its beginning and end are those of the loop.

    diffusers' pipelines put their denoising loop into `with self.progress_bar(total=...)` or iterate
    over `self.progress_bar(timesteps)`. In the loop, all denoisers count the steps of the scheduler,
    also those in which another one is called. State that a loop broken off has left open is dropped at
    the next one; a loop in whose callback another one begins waits. Shallow copies of the pipeline share
    this object: what is open belongs to a thread, and the scheduler is that of the pipeline whose loop it
    is.

    Arguments:
        pipe: The pipeline; its `progress_bar` is replaced.
        models: The wrapped denoisers.
    """

    def __init__(self, pipe: Any, models: Mapping[str, ExitModel]) -> None:
        self.original, self.models = pipe.progress_bar, dict(models)
        self._pipe: Callable[[], Any] = weakref.ref(pipe)
        self._loops: weakref.WeakSet[OpenLoop] = weakref.WeakSet()
        self._others: weakref.WeakSet[LoopWatch] = weakref.WeakSet()  # over the same denoisers
        pipe.progress_bar = self

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to this process; the pipeline is that of its own bar."""
        return {k: v for k, v in vars(self).items() if k not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _loops=weakref.WeakSet(), _others=weakref.WeakSet())
        pipe = getattr(self.original, "__self__", None)
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)

    def _tell_of_exchanged(self, pipe: Any) -> None:
        """Warns, once a model, where a pipeline holds another network than the wrapped one."""
        for name, model in self.models.items():
            held = getattr(pipe, name, model.backbone)
            held = uncompiled(held) if isinstance(held, nn.Module) else held
            if held is model.backbone or model.released or "exchanged" in model.notices:
                continue
            model.notices.add("exchanged")
            warnings.warn(
                f"{type(pipe).__name__}.{name} was exchanged since it was wrapped: the new "
                f"{type(held).__name__} has no exits, and runs in full. ek.unwrap(pipe), then ek.wrap(pipe, "
                "...) or ek.load(pipe, path) gives it some.",
                stacklevel=4,
            )

    def remove(self) -> None:
        """Gives the pipeline its own progress bar back, once no denoiser is wrapped any more."""
        if not all(model.released for model in self.models.values()):
            return
        for loop in list(self._loops):  # of other threads, which may have been broken off
            loop.end()
        pipe = self._pipe()
        if pipe is not None and vars(pipe).get("progress_bar") is self:
            del pipe.progress_bar
        for other in list(self._others):
            other.remove()

    def join_caller(self, model: ExitModel) -> None:
        """Watches a pipeline over the same denoisers that calls one of them and is not watched yet.

        `from_pipe` and `type(pipe)(**pipe.components)` make such pipelines, and nothing tells of it before
        they call. The loop that is under way is a trajectory from here on, until the scheduler has made
        its steps.

        Arguments:
            model: The denoiser that is called.
        """
        frame = sys._getframe(1)
        pipe = caller_without_loop(model, frame)
        if pipe is None or isinstance(vars(pipe).get("progress_bar"), LoopWatch):
            return
        held = {id(uncompiled(x)) for x in vars(pipe).values() if isinstance(x, nn.Module)}
        models = {name: m for name, m in self.models.items() if id(m.backbone) in held}
        other = LoopWatch(pipe, models)
        self._others.add(other)
        timesteps = getattr(scheduler_of(pipe), "timesteps", None)
        if timesteps is not None:
            other.begin(len(timesteps), pipe, frame)

    def __call__(self, iterable: Any = None, total: Any = None, **options: Any) -> Any:
        """The pipeline's progress bar, which opens and closes a trajectory on the way."""
        own = self._pipe()
        pipe = self._caller(sys._getframe(1), own)
        function = getattr(self.original, "__func__", None)
        bar = self.original if pipe is own or function is None else function.__get__(pipe)
        if iterable is not None:
            made = bar(iterable, **options)
            total = len(made) if hasattr(made, "__len__") else None
        else:
            made = bar(total=total, **options)
        return _WatchedBar(self, made, total, pipe)

    def _caller(self, frame: FrameType, own: Any) -> Any:
        """The pipeline that asks for its bar: nothing else tells a shallow copy from the original."""
        asks = frame.f_locals.get("self")
        copied = type(asks) is type(own) and vars(asks).get("progress_bar") is self
        return asks if copied else own

    def begin(
        self, total: int | None, pipe: Any, frame: FrameType, bar: object | None = None
    ) -> OpenLoop:
        """Opens a trajectory of every denoiser; one of the user's that is open already begins anew.

        Arguments:
            total: What the progress bar was told of the number of steps.
            pipe: The pipeline whose loop it is.
            frame: Where it begins.
            bar: The progress bar, which tells when the loop ends; None of one that has begun already: its
                last step ends it.

        Returns:
            What is open now.

        Raises:
            TrajectoryError: If it begins within a loop that a sampler drives.
        """
        call = call_of(pipe, frame)
        end_broken_off(self.models.values(), (call or frame).f_back)
        self._tell_of_exchanged(pipe)
        models = [model for model in self.models.values() if not model.released]
        scheduler, name = scheduler_of(pipe), type(pipe).__name__
        steps = planned_steps(scheduler, total)
        # Whoever sends calls elsewhere, as samplers do, tells by itself.
        own = [m for m in models if not is_routed(m.backbone) and not m._executor.suspended]
        warn_other_loop(own, scheduler, name)
        loop = OpenLoop(name, models, call, bar)
        loop.begin(steps)
        loop.count(scheduler, last=steps if bar is None else None)
        self._loops.add(loop)
        return loop


_OF_PROCESS = ("_pipe", "_loops", "_others")


class _WatchedBar:
    """A tqdm bar that tells when it is entered, iterated, updated, left or closed."""

    def __init__(self, watch: LoopWatch, bar: Any, steps: int | None, pipe: Any) -> None:
        self._watch, self._bar, self._pipe = watch, bar, pipe
        self._opened: OpenLoop | None = None
        self._steps = int(steps) if steps is not None else None

    def _begin(self) -> None:
        frame = sys._getframe(2)  # behind the method that begins it
        self._opened = self._watch.begin(self._steps, self._pipe, frame, self)

    def _end(self) -> None:
        if self._opened is not None:
            self._opened.end()

    def __enter__(self) -> _WatchedBar:
        self._begin()
        self._bar.__enter__()
        return self

    def update(self, *args: Any) -> Any:
        """Counts a step; some pipelines never enter their bar, so this may be its beginning."""
        if self._opened is None:
            self._begin()
        return self._bar.update(*args)

    def close(self) -> Any:
        """Ends the loop."""
        self._end()
        return self._bar.close()

    def __exit__(self, *error: Any) -> Any:
        self._end()
        return self._bar.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        try:
            yield from self._bar
        finally:
            self._end()

    def __len__(self) -> int:
        return len(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
