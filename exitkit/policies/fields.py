"""What the fields of a policy may hold, said by their annotations and checked once, when it is made.

`threshold: Fraction` is all that a policy has to say. An annotation without one of the aliases below
is checked by its type: finite numbers, booleans, literals, tuples of such; other types are left alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from exitkit.errors import ConfigError

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""Takes where a value stands, as `Policy.field`, and the value; returns it in its plain type."""


def integer(name: str, value: Any, low: int = 1) -> int:
    """Checks an integer.

    Arguments:
        name: Where the value stands, as `Policy.field`.
        value: The value; numpy integers are fine, booleans and floats are not.
        low: The smallest value allowed.

    Returns:
        The value as an `int`.

    Raises:
        ConfigError: If it is no integer of at least `low`.
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


def sequence(name: str, values: Any, check: Callable[[str, Any], T]) -> tuple[T, ...]:
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


def ascending(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """Checks that timestep edges rise.

    Arguments:
        name: Where the edges stand, as `Policy.field`.
        values: The edges.

    Returns:
        The edges.

    Raises:
        ConfigError: If two neighbours are equal or fall.
    """
    for i, (a, b) in enumerate(zip(values, values[1:], strict=False)):
        if not a < b:
            raise ConfigError(
                f"{name} must rise, but entry {i} is {a:g} and entry {i + 1} is {b:g}. "
                "Sort them by timestep and drop duplicates."
            )
    return values


def at_least(low: int) -> Check:
    """Integers from `low` up."""
    return lambda name, value: integer(name, value, low)


def between(low: float, high: float = math.inf) -> Check:
    """Finite numbers in `[low, high]`."""
    return lambda name, value: real(name, value, low, high)


def each(check: Check) -> Check:
    """Sequences whose every entry passes a check."""
    return lambda name, value: sequence(name, value, check)


def edge_pairs(what: str, low: float, high: float = math.inf) -> Check:
    """Pairs (upper edge of the timestep, value in `[low, high]`), edges rising.

    Arguments:
        what: Name of the value, for messages.
        low: The smallest value allowed.
        high: The largest value allowed.

    Returns:
        The check.
    """

    def pair(name: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ConfigError(f"{name} must be a pair (upper edge, {what}), got {value!r}.")
        return real(f"{name}[0]", value[0]), real(f"{name}[1]", value[1], low, high)

    def pairs(name: str, value: Any) -> tuple[tuple[float, float], ...]:
        checked = sequence(name, value, pair)
        ascending(name, tuple(edge for edge, _ in checked))
        return checked

    return pairs


Fraction = Annotated[float, between(0, 1)]
NonNegative = Annotated[float, between(0)]
Positive = Annotated[int, at_least(1)]
Depth = Annotated[int, at_least(0)]
Depths = Annotated[tuple[int, ...], each(at_least(0))]
Edges = Annotated[tuple[float, ...], each(real), ascending]


def check_fields(policy: object) -> None:
    """Checks the fields of a policy by their annotations, and stores them in their plain types.

    Arguments:
        policy: A dataclass that is being made.

    Raises:
        ConfigError: If a value is refused; it names class and field, what is allowed and the value.
    """
    name = type(policy).__name__
    cls = type(policy)
    if cls not in _CHECKS:
        _CHECKS[cls] = _checks(cls)
    for field, check in _CHECKS[cls].items():
        value = check(f"{name}.{field}", getattr(policy, field))
        object.__setattr__(policy, field, value)  # frozen for everybody else


_CHECKS: dict[type, dict[str, Check]] = {}


def _checks(cls: type) -> dict[str, Check]:
    found = {}
    for field in dataclasses.fields(cls):
        check = _check_of(_hint(cls, field.name, field.type))
        if check is not None:
            found[field.name] = check
    return found


def _hint(cls: type, name: str, annotation: Any) -> Any:
    """The annotation as an object; None where it names what its module does not know."""
    owner = next(c for c in cls.__mro__ if name in inspect.get_annotations(c))
    known = vars(sys.modules[owner.__module__])
    holder = SimpleNamespace(__annotations__={name: annotation})
    try:
        return get_type_hints(holder, known, include_extras=True)[name]
    except (NameError, AttributeError):  # a name of a function's own, or one for types alone
        return None


def _check_of(hint: Any) -> Check | None:
    """What an annotation asks for; None if nothing."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_turn(args[1:])
    if origin in (Union, UnionType) and NoneType in args:
        inner = [_check_of(arg) for arg in args if arg is not NoneType]
        if len(inner) == 1 and (check := inner[0]) is not None:
            return lambda name, value: None if value is None else check(name, value)
    if origin is Literal:
        return lambda name, value: _one_of(name, value, args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        entry = _check_of(args[0])
        return None if entry is None else each(entry)
    plain: dict[Any, Check] = {float: real, int: at_least(-sys.maxsize), bool: _switch}
    return plain.get(hint) if isinstance(hint, type) else None


def _in_turn(checks: tuple[Check, ...]) -> Check:
    def run(name: str, value: Any) -> Any:
        for check in checks:
            value = check(name, value)
        return value

    return run


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")
    return value
