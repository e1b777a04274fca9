"""Wall clock of several calls in one process, interleaved, so that a busy machine hits all alike.

Two programs timed one after the other differ by whatever else the machine did meanwhile. Here every
round makes every call once, each round starts at the next one, and only ratios *within* a round
are used: their median is the result. What part of the machine others used is recorded beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import torch

from exitkit.errors import ConfigError
from exitkit.evaluation.rows import Ratio

T = TypeVar("T")


@dataclass
class Stopwatch:
    """Seconds of every call in every round.

    Attributes:
        seconds: Name to seconds, one entry a round.
        foreign: Share of the machine's CPU time that other processes used, per round, in [0, 1];
            None where the system does not tell.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    foreign: list[float | None] = field(default_factory=list)

    def ratio(self, name: str, baseline: str) -> Ratio:
        """Median over the rounds of `name`'s seconds over `baseline`'s.

        Arguments:
            name: A call.
            baseline: The call it is compared with.

        Returns:
            The median and its quartiles; the quartiles equal it where there is one round.

        Raises:
            ConfigError: If one of them was not timed in every round.
        """
        mine, base = self.seconds.get(name, []), self.seconds.get(baseline, [])
        if not mine or len(mine) != len(base):
            raise ConfigError(
                f"Timing: {name!r} has {len(mine)} rounds and {baseline!r} has {len(base)}. "
                f"Timed: {', '.join(self.seconds) or 'nothing'}."
            )
        ratios = [a / b for a, b in zip(mine, base, strict=True)]
        if len(ratios) == 1:
            return Ratio(ratios[0], ratios[0], ratios[0])
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return Ratio(median(ratios), low, high)

    def round(
        self, calls: Mapping[str, Callable[[], T]], done: Callable[[str], None] | None = None
    ) -> dict[str, T]:
        """Times every call once, starting at another one than in the round before.

        Arguments:
            calls: Calls by name, the same names in every round.
            done: Called with each name after its call, outside of its time.

        Returns:
            What the calls returned, by name.
        """
        results: dict[str, T] = {}
        before = machine_times()
        for name in rotated(list(calls), len(self.foreign)):
            start = now()
            results[name] = calls[name]()
            self.seconds.setdefault(name, []).append(now() - start)
            if done is not None:
                done(name)
        self.foreign.append(foreign_share(before, machine_times()))
        return results

    @property
    def foreign_share(self) -> float | None:
        """Median share of the machine that others used, in [0, 1]; None if unknown."""
        known = [share for share in self.foreign if share is not None]
        return median(known) if known else None


def interleave(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 5, warmup: int = 1
) -> Stopwatch:
    """Times calls against each other.

    Arguments:
        calls: Calls by name, in any order; each does the same job once.
        rounds: Rounds that count, at least 1.
        warmup: Rounds before them that do not.

    Returns:
        The seconds of every call in every round.

    Raises:
        ConfigError: If there is no call or no round.
    """
    if not calls or rounds < 1:
        raise ConfigError(
            f"interleave: got {len(calls)} callables and rounds={rounds}; needs one of each."
        )
    for _ in range(warmup):
        for call in calls.values():
            call()
    watch = Stopwatch()
    for _ in range(rounds):
        watch.round(calls)
    return watch


def now() -> float:
    """Seconds on the wall clock, after everything queued on a GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names, starting at the `turn`-th: no call always runs after the same one's caches."""
    shift = turn % len(names) if names else 0
    return [*names[shift:], *names[:shift]]


@dataclass(frozen=True)
class MachineTimes:
    """CPU seconds since some start: of all cores busy, of all cores, and of this process."""

    busy: float
    total: float
    own: float


def machine_times() -> MachineTimes | None:
    """Reads the machine's and this process's CPU time; None where `/proc/stat` does not exist."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guest time is already inside user time.
    ticks = [int(value) for value in first.split()[1:9]]
    scale = os.sysconf("SC_CLK_TCK")
    idle = sum(ticks[3:5])
    own = os.times()
    return MachineTimes((sum(ticks) - idle) / scale, sum(ticks) / scale, own.user + own.system)


def foreign_share(before: MachineTimes | None, after: MachineTimes | None) -> float | None:
    """Share of the machine's CPU time that other processes used between two readings.

    Arguments:
        before: The first reading.
        after: The second reading.

    Returns:
        In [0, 1]; None where a reading is missing or no time passed.
    """
    if before is None or after is None or after.total <= before.total:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(max(others / (after.total - before.total), 0.0), 1.0)
