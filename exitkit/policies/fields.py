"""What the fields of a policy may hold: numbers, checked once when the policy is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, TypeVar

from exitkit.errors import ConfigError

T = TypeVar("T")


def whole(name: str, value: Any, low: int = 1) -> int:
    """Checks a whole number.

    Arguments:
        name: Where the value stands, as `Policy.field`.
        value: The value; numpy integers are fine, booleans and floats are not.
        low: The smallest value allowed.

    Returns:
        The value as an `int`.

    Raises:
        ConfigError: If it is no whole number of at least `low`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}.")
    return int(value)


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Checks a finite number within bounds, both included.

    Arguments:
        name: Where the value stands, as `Policy.field`.
        value: The value; booleans are refused.
        low: The smallest value allowed.
        high: The largest value allowed.

    Returns:
        The value as a `float`.

    Raises:
        ConfigError: If it is no finite number in `[low, high]`.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not (math.isfinite(number) and low <= number <= high):
        span = "" if math.isinf(low) and math.isinf(high) else f" in [{low:g}, {high:g}]"
        raise ConfigError(f"{name} must be a finite number{span}, got {value!r}.")
    return number


def flag(name: str, value: Any) -> bool:
    """Checks a switch.

    Arguments:
        name: Where the value stands, as `Policy.field`.
        value: The value.

    Returns:
        The value.

    Raises:
        ConfigError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")
    return value


def several(name: str, values: Any, check: Callable[[str, Any], T]) -> tuple[T, ...]:
    """Checks every entry of a sequence.

    Arguments:
        name: Where the sequence stands, as `Policy.field`.
        values: Any iterable that is not a string; a one-dimensional tensor or array is fine.
        check: Checks one entry, given its name and its value.

    Returns:
        The checked entries.

    Raises:
        ConfigError: If it cannot be iterated over, or an entry is refused.
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} must be a sequence, got {values!r}.")
    return tuple(check(f"{name}[{i}]", value) for i, value in enumerate(values))


def ascending(name: str, values: tuple[float, ...]) -> None:
    """Checks that timestep edges rise.

    Arguments:
        name: Where the edges stand, as `Policy.field`.
        values: The edges.

    Raises:
        ConfigError: If two neighbours are equal or fall.
    """
    for i, (a, b) in enumerate(zip(values, values[1:], strict=False)):
        if not a < b:
            raise ConfigError(
                f"{name} must rise, but entry {i} is {a:g} and entry {i + 1} is {b:g}. "
                "Sort them by timestep and drop duplicates."
            )
