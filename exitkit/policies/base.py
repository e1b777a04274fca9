"""What all policies share: a name, fields that are checked and saved, and one that trades cost for error.

A policy is a small frozen dataclass of one of two kinds. A `Schedule` knows depths beforehand, so that
nobody looks at anything; an `ExitRule` is asked at every exit. Neither ever sees a module.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from typing import Any, ClassVar, Self

from exitkit.errors import ConfigError
from exitkit.policies.fields import check_fields
from exitkit.policies.tunable import Tunable

FULL = 1_000_000
"""A depth beyond every network: the row runs to the end."""


class Policy(ABC):
    """Decides which rows leave at which exit: a `Schedule` or an `ExitRule`, a frozen dataclass.

    Attributes:
        name: What the policy is called in saved settings.
        tunable: The field that trades cost for error, for `calibrate`; None if there is none.
    """

    name: ClassVar[str]
    tunable: ClassVar[Tunable | None] = None

    def __post_init__(self) -> None:
        """Checks every field by its annotation; see `exitkit.policies.fields`.

        Raises:
            ConfigError: If a field is out of range.
        """
        check_fields(self)

    @property
    def couples_rows(self) -> bool:
        """Whether one decision holds for the whole batch, so that a row depends on its mates."""
        return False

    def tuning(self) -> Tunable | None:
        """The field of this very policy that trades cost for error.

        Returns:
            `tunable`, unless other fields decide which one it is; None if there is none.
        """
        return self.tunable

    def at(self, value: float) -> Self:
        """The same policy at another setting.

        Arguments:
            value: Value of the field that trades cost for error.

        Returns:
            A copy with that value.

        Raises:
            ConfigError: If there is no such field, or the value is refused.
        """
        tunable = self.tuning()
        if tunable is None:
            raise ConfigError(
                f"{type(self).__name__} has no field that trades cost for error. Name one in its class "
                '(`tunable: ClassVar[Tunable] = Tunable("threshold", 0.0, 1.0)`), or calibrate by name.'
            )
        given = {tunable.field: int(value) if tunable.integer else value}
        return dataclasses.replace(self, **given)  # type: ignore[type-var]

    def same_family(self, other: Policy) -> bool:
        """Whether another policy is this one, or this one at another setting."""
        if type(self) is not type(other) or self.tuning() != other.tuning():
            return False
        tunable = self.tuning()
        return self == (other if tunable is None else other.at(getattr(self, tunable.field)))

    def check_exits(self, exits: int) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuses a model whose exits are not those that the fields speak of; nothing here.

        Arguments:
            exits: Number of exits K of the model.

        Raises:
            ConfigError: If a field names an exit that is not there, or has a value for others.
        """

    def to_dict(self) -> dict[str, Any]:
        """Returns the policy as plain values that survive JSON.

        Returns:
            The name and every field; tuples become lists. `policy_from_dict` is the inverse.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"name": self.name, **{f.name: _plain(getattr(self, f.name)) for f in fields}}

    def __str__(self) -> str:
        """The fields that are not the usual ones; long ones by a few values and a count."""
        fields = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        shown = [f"{f.name}={_short(value)}" for f, value in fields if value != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


_MOST = 8
"""Values in a row that are shown one by one; of more the first three and a count."""


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > _MOST:
        return f"({', '.join(map(_short, value[:3]))}, and {len(value) - 3} more)"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))}{',' if len(value) == 1 else ''})"
    if value == FULL and not isinstance(value, bool):
        return "FULL"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
