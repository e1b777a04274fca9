"""How much is spent on each method of a suite: the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from exitkit.errors import ConfigError, suggest


@dataclass(frozen=True)
class Recipe:
    """How exits are fitted, and on how much policies are calibrated.

    Attributes:
        steps: Optimiser steps of a fit on data; carried exits are solved, and their uncertainty takes a
            fifth of it.
        batch_size: Rows of a step.
        rollouts: Trajectories of its own that a carried model is solved on.
        calibration: Seeds of a calibration.
        seed: Seed of data and noise.
        fit: Further arguments of `fit`, instead of the usual ones.

    Raises:
        ConfigError: If a number is below 1 (the seed: below 0).
    """

    steps: int = 450
    batch_size: int = 32
    rollouts: int = 64
    calibration: int = 16
    seed: int = 0
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in NUMBERS:
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"Recipe: {name} must be a whole number of at least {least}, got {value!r}."
                )


NUMBERS = tuple(f.name for f in fields(Recipe) if f.name != "fit")


def recipe_from_text(text: str) -> Recipe:
    """Reads a recipe such as `steps=300,batch_size=32`.

    Arguments:
        text: Names and whole numbers; what is not named is as usual.

    Returns:
        The recipe.

    Raises:
        ConfigError: If a name is unknown or a number is none.
    """
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (side.strip() for side in part.partition("="))
        if name not in NUMBERS:
            raise ConfigError(
                f"A recipe has no {name!r} (it has {', '.join(NUMBERS)}).{suggest(name, NUMBERS)}"
            )
        try:
            given[name] = int(value)
        except ValueError:
            raise ConfigError(
                f"Recipe: {name} must be a whole number, got {value!r}. Write {name}=32."
            ) from None
    return Recipe(**given)
