"""A call of a pipeline that stops before every step of its scheduler, until it is told to go on."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.pipelines.steps import Before


class _Left(BaseException):
    """Unwinds a call that nobody wants to end."""


def modes_of_thread() -> list[AbstractContextManager[Any]]:
    """What torch keeps by thread, for another one: autocast, the default device and the current GPU."""
    modes: list[AbstractContextManager[Any]] = [
        torch.autocast(kind, dtype=torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    ]
    if torch.get_default_device().type != "cpu":
        modes.append(torch.get_default_device())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        modes.append(torch.cuda.device(torch.cuda.current_device()))
    return modes


class HeldCall:
    """A call in a thread of its own, of which one alone runs at a time: this one, or who holds it.

    Arguments:
        call: Makes the call; it hands what it is given to whoever makes the steps (`StepCounter`).
    """

    def __init__(self, call: Callable[[Before], Any]) -> None:
        self._call = call
        self._out: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._in: SimpleQueue[Tensor | None] = SimpleQueue()
        self._context = contextvars.copy_context()
        self._modes = modes_of_thread()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ended: Future[None] | None = None

    def _work(self) -> None:
        try:
            with ExitStack() as stack:
                for mode in self._modes:
                    stack.enter_context(mode)
                self._call(self._before)
        except _Left:
            pass
        finally:
            self._out.put(None)

    def _before(self, given: dict[str, Any]) -> None:
        self._out.put(given)
        prediction = self._in.get()
        if prediction is None:
            raise _Left
        given["model_output"] = prediction

    def next(self, prediction: Tensor | None = None) -> dict[str, Any]:
        """Goes on to the next step.

        Arguments:
            prediction: What the scheduler gets at the step before which the call stands; None at the
                beginning.

        Returns:
            The arguments of the step before which the call stands now, by name.

        Raises:
            ConfigError: If the call ended before another step.
        """
        if prediction is None:
            self._ended = self._thread.submit(self._context.run, self._work)
        else:
            self._in.put(prediction)
        found = self._out.get()
        if found is None:
            assert self._ended is not None
            self._ended.result()  # an error of the call comes out here
            raise ConfigError(
                "fit: the pipeline's call ended before its scheduler had made all steps that it was set to, "
                "so completion cannot be solved along it. Use the preset 'relative'."
            )
        return found

    def end(self) -> None:
        """Unwinds the call, if it stands somewhere."""
        self._in.put(None)
        self._thread.shutdown()
