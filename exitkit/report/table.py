"""The rows as an HTML table, and what its columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from exitkit.evaluation.columns import Column, columns
from exitkit.evaluation.rows import Row

_WITH_INTERVAL = ("distance", "vs fewer steps", "accuracy", "minus full", "minus fixed exit")


def table_html(rows: Sequence[Row], colors: dict[str, str]) -> str:
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


def table_legend(rows: Sequence[Row]) -> str:
    """What each column means, as an HTML description list."""
    items = (
        f"<div><dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd></div>"
        for c in columns(rows)[1:]
    )
    return f'<dl class="legend">{"".join(items)}</dl>'


def _with_bar(column: Column, row: Row) -> str:
    cell = escape(column.cell(row))
    if column.title in _WITH_INTERVAL:
        mean, _, rest = cell.partition(" [")
        return f'{mean} <span class="ci">[{rest}</span>' if rest else mean
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
