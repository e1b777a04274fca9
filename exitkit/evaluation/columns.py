"""The rows as text: one definition of the columns for Markdown and for HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exitkit.evaluation.rows import Interval, Row

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: Heading.
        meaning: What it is, in one sentence; the HTML table's tool tip and legend.
        cell: Text of a row's cell, `NOTHING` where it was not measured.
    """

    title: str
    meaning: str
    cell: Callable[[Row], str]


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say about these rows."""
    several = len({row.sampler for row in rows}) > 1
    sampler = [Column("sampler", "Solver of the reverse process.", lambda row: row.sampler)]
    measured = _CLASSIFICATION if any(row.accuracy for row in rows) else _GENERATION
    kept = [c for c in measured if any(c.cell(row) != NOTHING for row in rows)]
    names = Column("policy", "What ran.", lambda row: row.name)
    return [names, *(sampler if several else []), *kept]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns."""
    chosen = columns(rows)
    return aligned([[c.title for c in chosen], *([c.cell(row) for c in chosen] for row in rows)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table, the heading first."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    # The first column is text, all others are numbers.
    text = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([text[0], "| " + " | ".join(rule) + " |", *text[1:]])


def _number(value: float | None, places: int) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}".replace("%", " %")


def _interval(value: Interval | None, digits: int = 4) -> str:
    if value is None:
        return NOTHING
    # A distance of 0.4 needs fewer decimals than one of 0.01.
    places = digits if value.mean < 0.1 else min(digits, 3)
    return f"{value.mean:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"


def _frechet(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _kernel(value: Interval | None) -> str:
    if value is None:
        return NOTHING
    # Features of a small network have no scale of their own: as many decimals as the interval needs.
    wide = value.high - value.low
    places = 0 if wide >= 10 else min(6, 1 - math.floor(math.log10(wide))) if wide > 0 else 3
    return f"{value.mean:,.{places}f} [{value.low:,.{places}f}, {value.high:,.{places}f}]"


def _accuracy(value: Interval | None) -> str:
    if value is None:
        return NOTHING
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _points(value: Interval | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if value is None:
        return NOTHING
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    # Adding 0.0 turns the "-0.0" that rounding may leave into "0.0".
    return f"{round(mean, 1) + 0.0:+.1f} [{round(low, 1) + 0.0:+.1f}, {round(high, 1) + 0.0:+.1f}]"


_COST = Column(
    "MACs",
    "Executed multiply-adds, heads included, over the full run's.",
    lambda row: f"{row.cost:.3f}",
)
_LAYERS = Column(
    "layers", "Executed blocks over the full run's.", lambda row: _number(row.layers, 3)
)
_CLOCK = Column(
    "wall clock",
    "Measured time over the bare full model's, same process, interleaved by batch.",
    lambda row: NOTHING if row.clock is None else f"{row.clock.median:.2f}",
)
_LABEL = Column(
    "same label",
    "Share of samples that keep the full run's label.",
    lambda row: _percent(row.agreement),
)
_GENERATION = (
    Column("steps", "Sampler steps.", lambda row: NOTHING if row.steps is None else str(row.steps)),
    _COST,
    _LAYERS,
    _CLOCK,
    Column(
        "distance",
        "Root mean square difference to the full run's image of the same seed, "
        "with the 95 % interval over seeds.",
        lambda row: NOTHING if row.kind == "full" else _interval(row.distance),
    ),
    Column(
        "vs fewer steps",
        "Distance over that of the same sampler with fewer steps at equal cost; "
        "below 1 is better than just taking fewer steps.",
        lambda row: _interval(row.against_steps, 2),
    ),
    Column(
        "Fréchet",
        "Fréchet distance to the reference images, in the given feature space.",
        lambda row: _frechet(row.frechet),
    ),
    Column(
        "KID",
        "Kernel distance to the reference images in the given feature space; unbiased, with the 95 % "
        "interval over seeds.",
        lambda row: _kernel(row.kernel),
    ),
    Column(
        "confidence",
        "Mean largest class probability of the classifier.",
        lambda row: _number(row.confidence, 3),
    ),
    _LABEL,
    Column(
        "depth by t",
        "Share of the depth variance that the timestep alone explains; "
        "at 100 % the policy is a static schedule.",
        lambda row: _percent(row.timestep_share),
    ),
)
_CLASSIFICATION = (
    _COST,
    Column(
        "accuracy",
        "Share of right classes, with the 95 % interval over images.",
        lambda row: _accuracy(row.accuracy),
    ),
    Column(
        "minus full",
        "Accuracy minus the full model's on the same images, in percentage points.",
        lambda row: NOTHING if row.kind == "full" else _points(row.against_full),
    ),
    Column(
        "minus fixed exit",
        "Accuracy minus that of the exit of about the same cost, in percentage points.",
        lambda row: _points(row.against_fixed),
    ),
    _LABEL,
    _LAYERS,
    Column("depth", "Mean depth in exits.", lambda row: _number(row.depth, 2)),
    Column(
        "depth by class",
        "Share of the depth variance that the true class explains.",
        lambda row: _percent(row.class_share),
    ),
    _CLOCK,
    Column(
        "host checks",
        "How often a batch waited for a decision.",
        lambda row: _number(row.host_checks, 1),
    ),
)
