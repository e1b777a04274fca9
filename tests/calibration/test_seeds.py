"""Seeds: how many, or which."""

from __future__ import annotations

from typing import Any

import pytest

from exitkit.calibration.seeds import CALIBRATION, CERTIFICATION, seed_tuple
from exitkit.errors import ConfigError


def test_a_number_counts_from_the_start_and_a_sequence_is_taken() -> None:
    assert seed_tuple(3, CALIBRATION) == (10_000, 10_001, 10_002)
    assert seed_tuple(2, CERTIFICATION) == (20_000, 20_001)
    assert seed_tuple([5, 1], CALIBRATION) == (5, 1) == seed_tuple((5, 1), 0)
    assert seed_tuple(range(2, 4), 0) == (2, 3)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (0, "at least 1, or a sequence of seeds, got 0"),
        (-1, "got -1"),
        (2.5, "got 2.5"),
        (True, "got True"),
        ("12", "got '12'"),
        ([], "seeds is empty"),
        ([-1], "A seed must be .* got -1"),
        ([1.5], "got 1.5"),
    ],
)
def test_other_seeds_are_refused(seeds: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        seed_tuple(seeds, 0)
