"""What a comparison of classifiers holds, and its table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from exitkit.evaluation.metrics import Interval
from exitkit.evaluation.timing import Ratio
from exitkit.execution.trace import Trace
from exitkit.report.result import Kind
from exitkit.report.rows import Rows
from exitkit.report.table import NOTHING, aligned


@dataclass(frozen=True)
class ClassRow:
    """One classifier under one policy.

    Attributes:
        name: Unique among the rows.
        kind: What it is: the full model, a policy, or a baseline that every policy has to beat.
        family: The entry it belongs to; empty for the full model.
        model: Which wrapped model it runs, by its preset; empty for other networks.
        images: Number of images behind every number.
        accuracy: Share of right classes, with a 95 % bootstrap interval over images.
        against_full: Accuracy minus the full model's on the same images, resampled in pairs.
        against_fixed: A policy's accuracy minus that of the fixed exit of about its cost, likewise.
        agreement: Share of images that get the full model's class, right or wrong.
        cost: Executed MACs over those of the full model, heads included.
        layers: Executed blocks over all blocks; None for other networks.
        depth: Mean depth in exits, where K + 1 ran to the end; None for other networks.
        class_share: Share of the depth variance that the true class explains; None where depth does
            not vary. There is no timestep that could explain it. C equally large classes explain
            (C - 1) / (n - 1) of it by chance alone.
        clock: Wall clock over that of the full model, batch by batch; None if not timed.
        host_checks: How often a batch waited for a decision; None for other networks.
    """

    name: str
    kind: Kind
    family: str
    model: str
    images: int
    accuracy: Interval
    against_full: Interval
    agreement: float
    cost: float
    against_fixed: Interval | None = None
    layers: float | None = None
    depth: float | None = None
    class_share: float | None = None
    clock: Ratio | None = None
    host_checks: float | None = None


@dataclass(frozen=True)
class ClassificationComparison(Rows[ClassRow]):
    """The result of `compare_classifiers`.

    Attributes:
        rows: The full model, then each entry with its static opponents.
        title: Heading of the report.
        notes: What a reader has to know before believing the table.
        settings: What was run, in words and numbers that do not depend on the machine.
        machine: What does.
        traces: Row name to what was executed, all images side by side.
    """

    rows: tuple[ClassRow, ...]
    title: str = "Early exit of classifiers, compared"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[str, Trace] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """The table, as Markdown with aligned columns."""
        return aligned(
            [[title for title, _ in COLUMNS], *([c(r) for _, c in COLUMNS] for r in self.rows)]
        )

    def to_json(self, path: str | Path) -> Path:
        """Writes rows, notes, settings and machine.

        Arguments:
            path: Target file; its folder is made if missing.

        Returns:
            The path.
        """
        data = {
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

    def save_figure(self, path: str | Path) -> Path:
        """Draws accuracy over executed MACs as a PNG file.

        Arguments:
            path: Target file; its folder is made if missing.

        Returns:
            The path.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from exitkit.report.accuracy import accuracy_over_cost

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(accuracy_over_cost(self.rows).light)
        return path


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}".replace("%", " %")


def _points(value: Interval | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if value is None:
        return NOTHING
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    # Adding 0.0 turns the "-0.0" that rounding may leave into "0.0".
    return f"{round(mean, 1) + 0.0:+.1f} [{round(low, 1) + 0.0:+.1f}, {round(high, 1) + 0.0:+.1f}]"


def _accuracy(row: ClassRow) -> str:
    mean, low, high = (100 * v for v in (row.accuracy.mean, row.accuracy.low, row.accuracy.high))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _number(value: float | None, places: int) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


COLUMNS: tuple[tuple[str, Callable[[ClassRow], str]], ...] = (
    ("policy", lambda row: row.name),
    ("MACs", lambda row: f"{row.cost:.3f}"),
    ("accuracy", _accuracy),
    ("minus full", lambda row: NOTHING if row.kind == "full" else _points(row.against_full)),
    ("minus fixed exit", lambda row: _points(row.against_fixed)),
    ("same label", lambda row: _percent(row.agreement)),
    ("layers", lambda row: _number(row.layers, 3)),
    ("depth", lambda row: _number(row.depth, 2)),
    ("depth by class", lambda row: _percent(row.class_share)),
    ("wall clock", lambda row: NOTHING if row.clock is None else f"{row.clock.median:.2f}"),
    ("host checks", lambda row: _number(row.host_checks, 1)),
)
"""Headings of the table and the text of a row's cells."""
