"""Recipes: what is refused, and how they are read from the command line."""

from __future__ import annotations

from typing import Any

import pytest

from exitkit.benchmark.recipe import Recipe, recipe_from_text
from exitkit.errors import ConfigError


def test_recipes_are_read_from_text() -> None:
    assert recipe_from_text("") == Recipe()
    read = recipe_from_text(" steps=2, batch_size = 4,calibration=3 ,")
    assert read == Recipe(steps=2, batch_size=4, calibration=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepps=2", "has no 'stepps' .*Did you mean 'steps'"),
        ("steps", "steps must be a whole number, got ''"),
        ("steps=2.5", "steps must be a whole number, got '2.5'"),
        ("steps=0", "steps must be a whole number of at least 1, got 0"),
        ("fit=3", "has no 'fit'"),
    ],
)
def test_text_that_is_no_recipe_says_what_is(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe_from_text(text)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "3", None])
def test_numbers_are_whole_and_above_zero(wrong: Any) -> None:
    for name in ("steps", "batch_size", "rollouts", "calibration"):
        with pytest.raises(ConfigError, match=name):
            Recipe(**{name: wrong})
    assert Recipe(seed=0).seed == 0
    with pytest.raises(ConfigError, match="seed"):
        Recipe(seed=-1)
