"""Steps as the scheduler makes them: told by its calls, never by timesteps.

Timesteps of neighbouring steps may round to one number, repeat, or turn back for a moment. What a
pipeline calls once a step is `scheduler.step`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from torch import Tensor

from exitkit.execution.patching import copy_signature

Before = Callable[[dict[str, Any]], None]
"""Looks at the arguments of a step of a scheduler, by name, and may change them."""


class StepCounter:
    """Stands in for `scheduler.step` while a pipeline runs.

    Arguments:
        scheduler: The scheduler.
        ended: Called after each step.
        before: Called before each step with its arguments by name, which it may change; None for nobody.

    Attributes:
        count: Steps so far.
        latents: State after the last one; None before it, and where it is no tensor.
    """

    def __init__(
        self, scheduler: Any, ended: Callable[[], Any], before: Before | None = None
    ) -> None:
        self.scheduler, self._ended, self._before = scheduler, ended, before
        self.count = 0
        self.latents: Tensor | None = None
        self.removed = False
        self._replaced = vars(scheduler).get("step")
        self._original = scheduler.step
        copy_signature(self, self._original)  # pipelines look at its parameters
        scheduler.step = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the step, then tells."""
        if self._before is not None and not self.removed:
            given = inspect.signature(self._original).bind(*args, **kwargs)
            self._before(given.arguments)
            args, kwargs = given.args, given.kwargs
        made = self._original(*args, **kwargs)
        if not self.removed:
            after = made[0] if isinstance(made, tuple) else getattr(made, "prev_sample", None)
            self.latents = after if isinstance(after, Tensor) else None
            self.count += 1
            self._ended()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied scheduler steps itself, not the original, and is not counted."""
        copied = memo.get(id(self.scheduler))
        return self if copied is None else types.MethodType(type(copied).step, copied)

    def remove(self) -> None:
        """Gives the scheduler its own `step` back, or lets whoever stands over this one do so."""
        self.removed = True
        top: Any = self
        while isinstance(top, StepCounter) and top.removed:
            if vars(self.scheduler).get("step") is not top:
                return  # somebody else has replaced it since
            replaced = top._replaced
            if replaced is None:
                del self.scheduler.step
            else:
                self.scheduler.step = replaced
            top = replaced


def count_steps(
    scheduler: Any, ended: Callable[[], Any], before: Before | None = None
) -> StepCounter | None:
    """Counts the steps of a scheduler from now on.

    Arguments:
        scheduler: The scheduler, or whatever a pipeline has in its place.
        ended: Called after each step.
        before: As for `StepCounter`.

    Returns:
        The counter, to be removed; None where nothing can be counted.
    """
    if not callable(getattr(scheduler, "step", None)) or not hasattr(scheduler, "__dict__"):
        return None
    return StepCounter(scheduler, ended, before)


def scheduler_of(pipe: Any) -> Any:
    """The scheduler that a pipeline steps; None where it has none of its own."""
    own = getattr(pipe, "scheduler", None)
    if own is not None:
        return own
    parts: Sequence[Any] = list(getattr(pipe, "components", {}).values())
    return next((part for part in parts if hasattr(part, "set_timesteps")), None)


def planned_steps(scheduler: Any, total: int | None) -> int | None:
    """How many steps a loop that begins now will make, where that is sure.

    Arguments:
        scheduler: The scheduler, its timesteps set.
        total: What the pipeline's progress bar was told: a second-order solver makes two steps for each
            of them, and PNDM a few more than these.

    Returns:
        The number, or None.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if total is None or timesteps is None:
        return total
    left = len(timesteps) - int(getattr(scheduler, "begin_index", None) or 0)
    if left <= total or ceil(left / max(1, getattr(scheduler, "order", 1))) == total:
        return left
    return None
