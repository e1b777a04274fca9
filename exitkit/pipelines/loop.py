"""The denoising loop of a pipeline as a trajectory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from exitkit.model import ExitModel


class LoopWatch:
    """Replaces `progress_bar` on a pipeline: its beginning and end are those of the loop.

    diffusers' pipelines put their denoising loop into `with self.progress_bar(total=...)` or iterate
    over `self.progress_bar(timesteps)`. State that a loop broken off has left open is dropped at the
    next one.

    Arguments:
        pipe: The pipeline; its `progress_bar` is replaced.
        models: The wrapped denoisers.
    """

    def __init__(self, pipe: Any, models: Mapping[str, ExitModel]) -> None:
        self.original, self.models = pipe.progress_bar, dict(models)
        self._open: ExitStack | None = None
        self._pipe = weakref.ref(pipe)
        pipe.progress_bar = self

    def remove(self) -> None:
        """Gives the pipeline its own progress bar back, once no denoiser is wrapped any more."""
        if not all(model.released for model in self.models.values()):
            return
        self.end()
        pipe = self._pipe()
        if pipe is not None and vars(pipe).get("progress_bar") is self:
            del pipe.progress_bar

    def __call__(self, iterable: Any = None, total: Any = None, **options: Any) -> Any:
        """The pipeline's progress bar, which opens and closes a trajectory on the way."""
        if iterable is not None:
            made = self.original(iterable, **options)
            return _WatchedBar(self, made, len(made) if hasattr(made, "__len__") else None)
        return _WatchedBar(self, self.original(total=total, **options), total)

    def begin(self, steps: int | None) -> None:
        """Opens a trajectory of every denoiser."""
        self.end()
        stack = ExitStack()
        for model in self.models.values():
            if not model.released:
                stack.enter_context(model.trajectory(steps))
        self._open = stack

    def end(self) -> None:
        """Closes what is open."""
        if self._open is not None:
            stack, self._open = self._open, None
            stack.close()


class _WatchedBar:
    """A tqdm bar that tells when it is entered, iterated, updated, left or closed."""

    def __init__(self, watch: LoopWatch, bar: Any, steps: int | None) -> None:
        self._watch, self._bar, self._begun = watch, bar, False
        self._steps = int(steps) if steps is not None else None

    def _begin(self) -> None:
        self._begun = True
        self._watch.begin(self._steps)

    def __enter__(self) -> _WatchedBar:
        self._bar.__enter__()
        self._begin()
        return self

    def update(self, *args: Any) -> Any:
        """Counts a step; some pipelines never enter their bar, so this may be its beginning."""
        if not self._begun:
            self._begin()
        return self._bar.update(*args)

    def close(self) -> Any:
        """Ends the loop."""
        self._watch.end()
        return self._bar.close()

    def __exit__(self, *error: Any) -> Any:
        self._watch.end()
        return self._bar.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        try:
            yield from self._bar
        finally:
            self._watch.end()

    def __len__(self) -> int:
        return len(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
