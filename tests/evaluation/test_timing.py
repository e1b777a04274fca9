"""The stopwatch, against controlled clocks."""

from __future__ import annotations

import time

import pytest

from exitkit.errors import ConfigError
from exitkit.evaluation.timing import (
    MachineTimes,
    Stopwatch,
    foreign_share,
    interleave,
    machine_times,
    rotated,
)


def test_rivals_take_turns_at_going_first():
    calls: list[str] = []
    watch = interleave(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1
    )
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in watch.seconds.items()} == dict.fromkeys(
        "abc", 3
    )
    assert rotated(["x", "y"], 5) == ["y", "x"]


def test_ratios_are_taken_within_rounds():
    # The machine slows down threefold; within each round the second rival takes half as long.
    watch = Stopwatch({"a": [1.0, 2.0, 3.0], "b": [0.5, 1.0, 1.5]})
    ratio = watch.ratio("b", "a")
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="'c' has 0 rounds"):
        watch.ratio("c", "a")


def test_interleave_sees_which_rival_is_slower():
    watch = interleave({"quick": lambda: None, "slow": lambda: time.sleep(0.01)}, rounds=3)
    assert watch.ratio("slow", "quick").median > 10
    with pytest.raises(ConfigError, match="rounds=0"):
        interleave({"quick": lambda: None}, rounds=0)


def test_foreign_share_takes_own_work_out():
    before = MachineTimes(busy=10.0, total=100.0, own=1.0)
    after = MachineTimes(busy=16.0, total=110.0, own=3.0)
    assert foreign_share(before, after) == pytest.approx(0.4)
    assert foreign_share(before, before) is None
    assert foreign_share(None, after) is None
    assert Stopwatch(foreign=[None, 0.2, 0.4, 0.3]).foreign_share == pytest.approx(0.3)
    assert Stopwatch(foreign=[None]).foreign_share is None


def test_machine_times_count_this_process():
    before = machine_times()
    if before is None:
        pytest.skip("no /proc/stat on this system")
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    after = machine_times()
    assert after is not None
    assert after.own - before.own >= 0.08
    assert after.total > before.total


def test_a_round_gives_back_what_the_calls_returned():
    watch, order = Stopwatch(), []
    calls = {"a": lambda: 1, "b": lambda: 2}
    for _ in range(2):
        assert watch.round(calls, order.append) == {"a": 1, "b": 2}
    assert order == ["a", "b", "b", "a"], "each round starts at another call"
    assert {name: len(seconds) for name, seconds in watch.seconds.items()} == {"a": 2, "b": 2}
