"""The rows as text: one definition of the columns for Markdown and for HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from exitkit.evaluation.metrics import Interval
from exitkit.report.result import Row

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


def _layers(row: Row) -> str:
    return NOTHING if row.layers is None else f"{row.layers:.3f}"


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say about these rows."""
    several = len({row.sampler for row in rows}) > 1
    names = Column("policy", "What ran.", lambda row: row.name)
    sampler = [Column("sampler", "Solver of the reverse process.", lambda row: row.sampler)]
    rest = [
        Column("steps", "Sampler steps.", lambda row: str(row.steps)),
        Column("MACs", "Executed multiply-adds, heads included, over the full run's.", _cost),
        Column("layers", "Executed blocks over the full run's.", _layers),
        Column(
            "wall clock",
            "Measured time over the bare full model's, same process, interleaved by batch.",
            lambda row: NOTHING if row.clock is None else f"{row.clock.median:.2f}",
        ),
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
            lambda row: NOTHING if row.against_steps is None else _interval(row.against_steps, 2),
        ),
        Column(
            "Fréchet",
            "Fréchet distance to the reference images, in the given feature space.",
            lambda row: _frechet(row.frechet),
        ),
        Column(
            "confidence",
            "Mean largest class probability of the classifier.",
            lambda row: NOTHING if row.confidence is None else f"{row.confidence:.3f}",
        ),
        Column(
            "same label",
            "Share of images that keep the full run's label.",
            lambda row: _percent(row.agreement),
        ),
        Column(
            "depth by t",
            "Share of the depth variance that the timestep alone explains; "
            "at 100 % the policy is a static schedule.",
            lambda row: _percent(row.timestep_share),
        ),
    ]
    kept = [c for c in rest if any(c.cell(row) != NOTHING for row in rows)]
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


def html(rows: Sequence[Row], colors: dict[str, str]) -> str:
    """The rows as an HTML table.

    Arguments:
        rows: The rows.
        colors: Family to the name of its CSS colour variable.

    Returns:
        A `table` element.
    """
    chosen = columns(rows)
    head = "".join(
        f'<th scope="col" title="{escape(c.meaning, quote=True)}">{escape(c.title)}</th>'
        for c in chosen
    )
    body = []
    for row in rows:
        cells = [f"<td>{_with_bar(c, row)}</td>" for c in chosen[1:]]
        mark = f'<span class="mark {_shape(row)}" style="--c:var({colors[row.family]})"></span>'
        name = f'<th scope="row">{mark}{escape(row.name)}</th>'
        body.append(f'<tr class="{row.kind.replace(" ", "-")}">{name}{"".join(cells)}</tr>')
    caption = "All rivals; the meaning of each column is below the table."
    return (
        f'<table><caption class="hidden">{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def legend(rows: Sequence[Row]) -> str:
    """What each column means, as an HTML description list."""
    items = (
        f"<div><dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd></div>"
        for c in columns(rows)[1:]
    )
    return f'<dl class="legend">{"".join(items)}</dl>'


def _with_bar(column: Column, row: Row) -> str:
    cell = escape(column.cell(row))
    if column.title == "distance" or column.title == "vs fewer steps":
        mean, _, rest = cell.partition(" ")
        return f'{mean} <span class="ci">{rest}</span>' if rest else mean
    if column.title == "MACs":
        return f'<span class="bar" style="--w:{min(row.cost, 1):.1%}">{cell}</span>'
    return cell


def _shape(row: Row) -> str:
    return {
        "policy": "disc",
        "mode schedule": "diamond",
        "fixed exit": "square",
        "no exit": "cross",
        "fewer steps": "triangle",
        "network": "pentagon",
    }.get(row.kind, "disc")


def _cost(row: Row) -> str:
    return f"{row.cost:.3f}"


def _interval(value: Interval, digits: int = 4) -> str:
    # A distance of 0.4 needs fewer decimals than one of 0.01.
    places = digits if value.mean < 0.1 else min(digits, 3)
    return f"{value.mean:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"


def _frechet(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}".replace("%", " %")
