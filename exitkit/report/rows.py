"""What every table of results can do, whatever its rows are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """A row with a name."""

    @property
    def name(self) -> str:
        """Unique among the rows."""


R = TypeVar("R", bound=Named)


class Rows(ABC, Generic[R]):
    """Rows by name, and the table as text.

    Attributes:
        rows: The rows.
        notes: What a reader has to know before believing the table.
    """

    rows: tuple[R, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> R:
        """The row of that name.

        Raises:
            KeyError: If there is none; the message lists the names.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; rows: {', '.join(row.name for row in self.rows)}")

    def __str__(self) -> str:
        """The table, and the notes below it."""
        return "\n".join([self.to_markdown(), *(f"note: {note}" for note in self.notes)])

    @abstractmethod
    def to_markdown(self) -> str:
        """The table, as Markdown with aligned columns."""
