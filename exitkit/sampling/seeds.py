"""Seeds name samples: which ones a verb means by a number."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from exitkit.errors import ConfigError

FIT, CALIBRATE, CERTIFY, COMPARE = 0, 10_000, 20_000, 100_000
"""Where each verb counts from, so that nothing is judged on what it was fitted to."""


def seed_list(seeds: Any, start: int = 0) -> tuple[int, ...]:
    """The seeds that are meant.

    Arguments:
        seeds: How many, counted from `start`, or the seeds themselves.
        start: The first one where only their number is given.

    Returns:
        One seed a sample.

    Raises:
        ConfigError: If there is none, or one is no whole number in [0, 2^63).
    """
    number = isinstance(seeds, Integral)
    if isinstance(seeds, bool | str) or not (number or hasattr(seeds, "__iter__")):
        raise ConfigError(f"seeds must be a whole number or a sequence of them, got {seeds!r}.")
    chosen = tuple(range(start, start + int(seeds)) if number else seeds)
    if not chosen:
        raise ConfigError(f"seeds={seeds!r} names no sample; name at least one.")
    return tuple(_seed(value) for value in chosen)


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
        raise ConfigError(f"A seed must be a whole number in [0, 2^63), got {value!r}.")
    return int(value)
