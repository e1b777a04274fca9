"""Calls that stop before every step, against the same loop run through."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.pipelines.held_call import HeldCall

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


def loop(before: Any, steps: int = 3, left: list[str] | None = None) -> None:
    x = torch.zeros(1)
    try:
        for step in range(steps):
            given = {"model_output": x + step, "who": NAME.get()}
            before(given)
            x = given["model_output"]
    finally:
        if left is not None:
            left.append("unwound")


def test_it_stands_before_each_step_and_goes_on_with_what_it_gets() -> None:
    NAME.set("somebody")
    held, seen = HeldCall(loop), list[float]()
    given = held.next()
    assert given["who"] == "somebody"
    for _ in range(2):
        seen.append(float(given["model_output"]))
        given = held.next(given["model_output"] + 10)
    assert [*seen, float(given["model_output"])] == [0.0, 11.0, 23.0]
    with pytest.raises(ConfigError, match="ended before its scheduler had made all steps"):
        held.next(given["model_output"])
    held.end()


def test_two_calls_take_turns_and_both_are_unwound() -> None:
    left, threads = list[str](), threading.active_count()
    held = [HeldCall(lambda before: loop(before, left=left)) for _ in range(2)]
    first = [call.next() for call in held]
    moved = [given["model_output"] + n for n, given in enumerate(first)]
    second = [call.next(x) for call, x in zip(held, moved, strict=True)]
    assert [float(given["model_output"]) for given in second] == [1.0, 2.0] and not left
    for call in held:
        call.end()
        call.end()
    assert left == ["unwound"] * 2 and threading.active_count() == threads
    HeldCall(loop).end()  # one that never began


def test_errors_come_out_where_it_is_waited_for() -> None:
    def broken(before: Any) -> None:
        loop(before, steps=1)
        raise KeyboardInterrupt

    held = HeldCall(broken)
    held.next()
    with pytest.raises(KeyboardInterrupt):
        held.next(torch.zeros(1))


def test_what_torch_keeps_by_thread_goes_along() -> None:
    def call(before: Any) -> None:
        before({"model_output": torch.zeros(2, 2) @ torch.zeros(2, 2)})

    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            held = HeldCall(call)
            assert held.next()["model_output"].dtype == dtype
            held.end()
