"""What a forward keeps for later calls: bases, and running sums."""

from __future__ import annotations

import torch

from exitkit.execution.gate import CallSite
from exitkit.execution.stream import Stream
from exitkit.surgery.spec import Call


def site(number: int, kept: bool = False, **more: object) -> CallSite:
    call = Call(f"calls.{number}", 0, (), (), "x", "", (), **more)  # type: ignore[arg-type]
    return CallSite.of(call, 1, False, number, kept)


def test_a_base_is_the_state_that_entered_so_many_calls_before() -> None:
    stream = Stream(frozenset({0, 2}))
    states = [torch.full((2,), float(n)) for n in range(4)]
    for n, state in enumerate(states):
        stream.enter(site(n), state)
    assert stream.base(site(1, base=1)) is states[0]
    assert stream.base(site(3, base=1)) is states[2]
    assert stream.base(site(2, base=0)) is states[2]
    assert stream.base(site(3)) is None


def test_sums_run_on() -> None:
    stream = Stream(frozenset())
    assert stream.base(site(0, summed=True)) is None
    for value in (1.0, 2.0):
        stream.leave(torch.tensor([value]))
    assert stream.base(site(2, summed=True)) == 3.0


def test_calls_that_something_is_kept_of_take_no_short_cut() -> None:
    assert site(0, kept=True).kept and site(0, summed=True).kept
    assert not site(0, base=0).kept
