"""The field of a policy that trades cost for error, and its range."""

from __future__ import annotations

from dataclasses import dataclass

_DECADES = 8.0
"""Decades that a search by ratios spans."""


@dataclass(frozen=True)
class Tunable:
    """The field of a policy that trades cost for error.

    Attributes:
        field: Name of the field.
        safe: Its value where nobody, or hardly anybody, leaves early.
        cheap: Its value where everybody leaves as early as the policy allows.
        integer: Whether only integers make sense.
        log: Whether to search by ratios of the distance from the safe value.
    """

    field: str
    safe: float
    cheap: float
    integer: bool = False
    log: bool = False

    def value(self, position: float) -> float:
        """The value at a position from 0, the safe end, to 1, the cheap one.

        Arguments:
            position: In [0, 1].

        Returns:
            The value; an `int` if the field is an integer.
        """
        if position <= 0:
            return self.safe
        part = 10 ** (_DECADES * (position - 1)) if self.log else position
        value = self.safe + (self.cheap - self.safe) * part
        return round(value) if self.integer else value
