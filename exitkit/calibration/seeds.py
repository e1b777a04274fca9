"""Which seeds a calibration rests on; fits and comparisons count from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from exitkit.errors import ConfigError

CALIBRATION, CERTIFICATION = 10_000, 20_000
"""First seed that policies are calibrated on, and first one that certifies them."""


def seed_tuple(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    """Turns a number or a sequence into seeds.

    Arguments:
        seeds: How many seeds, or the seeds.
        first: Where counting starts.

    Returns:
        The seeds.

    Raises:
        ConfigError: If there is none, or one is no whole number in [0, 2^63).
    """
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        chosen = tuple(seeds)
    elif _whole(seeds) and int(seeds) >= 1:
        chosen = tuple(range(first, first + int(seeds)))
    else:
        raise ConfigError(
            f"seeds must be how many there are, at least 1, or a sequence of seeds, got {seeds!r}."
        )
    for seed in chosen:
        if not _whole(seed) or not 0 <= int(seed) < 2**63:
            raise ConfigError(f"A seed must be a whole number in [0, 2^63), got {seed!r}.")
    if not chosen:
        raise ConfigError("seeds is empty; name at least one, or say how many.")
    return tuple(int(seed) for seed in chosen)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
