"""What a comparison holds: rows, what has to be known about them, and what figures are drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from exitkit.errors import ConfigError, expect
from exitkit.evaluation.columns import markdown
from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.evaluation.rows import Interval, Ratio, Row
from exitkit.execution.trace import Trace

SCHEMA = 1
"""Version of the JSON layout; a change that old readers would misread counts it up."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: plain data, drawn by `exitkit.report`.

    Attributes:
        rows: All that were compared; the full model first.
        title: Heading of the report.
        notes: What a reader has to know before believing the table.
        settings: What was run, in words and numbers that do not depend on the machine.
        machine: What does: the processor's name, threads, the share of it that others used.
        images: Row name to the samples of the first few seeds, (kept, *shape).
        traces: Row name to what was executed, all samples side by side.
        depths: Policy name to its depths along the trajectory.
        errors: Entry name to the error of every exit by timestep.
        maps: Entry name to maps of predicted and actual uncertainty.
    """

    rows: tuple[Row, ...]
    title: str = "Early exit, compared"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)
    traces: Mapping[str, Trace] = field(default_factory=dict)
    depths: Mapping[str, DepthMap] = field(default_factory=dict)
    errors: Mapping[str, LayerErrors] = field(default_factory=dict)
    maps: Mapping[str, UncertaintyMaps] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Row:
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

    def with_notes(self, notes: Sequence[str]) -> Comparison:
        """The comparison with further notes.

        Arguments:
            notes: Sentences.

        Returns:
            A copy.
        """
        return replace(self, notes=(*self.notes, *notes))

    def to_markdown(self) -> str:
        """The table, as Markdown with aligned columns."""
        return markdown(self.rows)

    def to_json(self, path: str | Path) -> Path:
        """Writes title, notes, settings, machine and rows; samples and traces are left out.

        Arguments:
            path: Target file; its folder is made if missing.

        Returns:
            The path.
        """
        data = {
            "schema": SCHEMA,
            "title": self.title,
            "notes": list(self.notes),
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "rows": [asdict(row) for row in self.rows],
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, path: str | Path) -> Comparison:
        """Reads what `to_json` wrote: its table and its trade-off can be drawn again.

        Arguments:
            path: The file.

        Returns:
            The comparison, without samples, traces and measurements along the trajectory.

        Raises:
            ConfigError: If the file cannot be read, is no comparison, or of another schema.
        """
        remedy = "Pass the file that comparison.to_json(path) wrote."
        expect("Comparison.from_json", path, (str, PathLike), "a path", remedy)
        try:
            data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is no JSON file: {error}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. {remedy}") from error
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise ConfigError(
                f"{path}: expected a comparison of schema {SCHEMA}, found schema {found!r}. Read it "
                "with the version of exitkit that wrote it, or compare anew."
            )
        try:
            rows = tuple(_read(row) for row in data["rows"])
            notes = tuple(data["notes"])
            return cls(rows, data["title"], notes, data["settings"], data["machine"])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} says schema {SCHEMA} and does not follow it: {error!r}. Was it edited?"
            ) from error


_INTERVALS = ("distance", "against_steps", "kernel", "accuracy", "against_full", "against_fixed")


def _read(data: Mapping[str, Any]) -> Row:
    known = dict(data)
    known |= {name: Interval(**known[name]) for name in _INTERVALS if known.get(name)}
    if known.get("clock"):
        known["clock"] = Ratio(**known["clock"])
    return Row(**known)
