"""The trade: what a saving costs, policy by policy and beside fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitkit.evaluation.report.result import Row
from exitkit.evaluation.report.style import (
    MARKERS,
    Picture,
    Theme,
    color,
    draw,
    family_order,
    log_ticks,
)

_FEWER_NAMED = 4
"""Step counts up to which each has its name in the figure."""


def tradeoff(rows: Sequence[Row]) -> Picture | None:
    """Cost against distance to the full run, one labelled mark a row.

    Arguments:
        rows: The rows of one sampler.

    Returns:
        The figure; None if there is nothing beside the full run.
    """
    shown = [row for row in rows if row.kind != "full" and row.distance.mean > 0]
    if not shown:
        return None
    order = family_order(rows)

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        axes.set_yscale("log")
        for sampler in dict.fromkeys(row.sampler for row in shown):
            line = sorted(
                (r for r in shown if r.kind == "fewer steps" and r.sampler == sampler),
                key=lambda row: row.cost,
            )
            axes.plot(
                [row.cost for row in line],
                [row.distance.mean for row in line],
                color=theme.steps,
                linestyle=(0, (4, 3)),
                linewidth=1.2,
                zorder=1,
            )
        for row in shown:
            _mark(axes, row, color(row, order, theme), theme)
        for curve in _curves(shown):
            axes.plot(
                [row.cost for row in curve],
                [row.distance.mean for row in curve],
                color=color(curve[0], order, theme),
                linewidth=1.2,
                zorder=2,
            )
        low = min(max(row.distance.low, row.distance.mean / 20) for row in shown)
        high = max(row.distance.high for row in shown)
        axes.set(xlim=(0, 1.06), ylim=(low / 1.6, high * 1.6))
        # A log axis has no zero: the full run sits on its lower edge.
        axes.plot([1], [low / 1.6], MARKERS["full"], color=theme.ink, markersize=12, clip_on=False)
        axes.annotate(
            "full run, distance 0",
            xy=(1, low / 1.6),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        axes.set_xticks([i / 10 for i in range(11)])
        axes.set_xlabel("executed MACs / MACs of the full run")
        axes.set_ylabel("distance to the full run (RMSE, log)")
        log_ticks(axes)
        _label(figure, axes, _labels(shown), order, theme)

    return draw(
        paint,
        name="tradeoff",
        title="What a saving costs",
        alt="Log plot of the distance to the full run over executed MACs. "
        + "; ".join(f"{r.name}: {r.distance.mean:.3g} at {r.cost:.2f}" for r in shown),
        caption="Lower and further left is better. Colour tells the model. Filled disc: its "
        "policy, with a line where it stands at several costs; diamond: the static schedule read "
        "from that policy; square: always the same exit; cross: its own network without exits, where "
        "that was fine-tuned; triangle: the bare model with fewer steps; pentagon: another network "
        "in its place. Bars are 95 % intervals over seeds.",
        width=8.6,
        height=4.6,
    )


def _curves(rows: Sequence[Row]) -> list[list[Row]]:
    """Policies of one family and sampler at several costs, from the cheapest up."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == "policy":
            found.setdefault((row.family, row.sampler), []).append(row)
    return [sorted(c, key=lambda row: row.cost) for c in found.values() if len(c) > 1]


def _labels(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """What is written beside which row: of a curve, and of many step counts, the cheapest alone."""
    curves = _curves(rows)
    written = {id(curve[0]): curve[0].family for curve in curves}
    silent = {id(row) for curve in curves for row in curve[1:]}
    fewer = sorted((r for r in rows if r.kind == "fewer steps"), key=lambda r: r.cost)
    if len(fewer) > _FEWER_NAMED:
        written[id(fewer[0])] = "fewer steps"
        silent |= {id(row) for row in fewer[1:]}
    return [(row, written.get(id(row), row.name)) for row in rows if id(row) not in silent]


def _mark(axes: Any, row: Row, tint: str, theme: Theme) -> None:
    mean, low, high = row.distance.mean, row.distance.low, row.distance.high
    hollow = row.kind in ("mode schedule", "fixed exit")
    axes.errorbar(
        [row.cost],
        [mean],
        yerr=[[max(mean - low, 0)], [max(high - mean, 0)]],
        fmt=MARKERS[row.kind],
        color=tint,
        markersize=7,
        markerfacecolor=theme.paper if hollow else tint,
        markeredgewidth=1.6,
        elinewidth=1.2,
        capsize=2.5,
        zorder=3,
    )


def _label(
    figure: Any,
    axes: Any,
    labels: Sequence[tuple[Row, str]],
    order: Sequence[str],
    theme: Theme,
) -> None:
    """Writes names in a column beside their neighbours, without overlaps."""
    figure.canvas.draw()
    box = axes.get_window_extent()
    gap = 15 / 72 * figure.dpi
    placed: list[tuple[Row, float, float, str]] = []
    for row, text in labels:
        x, y = axes.transData.transform((row.cost, row.distance.mean))
        placed.append((row, x, y, text))
    # Rows whose labels could meet share a column; a label is roughly a third of the axes wide.
    placed.sort(key=lambda item: item[1])
    columns: list[list[tuple[Row, float, float, str]]] = []
    for item in placed:
        if columns and item[1] - columns[-1][0][1] < 0.12 * box.width:
            columns[-1].append(item)
        else:
            columns.append([item])
    for column in columns:
        column.sort(key=lambda item: item[2])
        ys = _spread([item[2] for item in column], gap, box.y0 + gap / 2, box.y1 - gap / 2)
        right = max(item[1] for item in column) + 0.035 * box.width
        left = min(item[1] for item in column) - 0.035 * box.width
        beyond = right > box.x0 + 0.72 * box.width
        for (row, x, y, text), height in zip(column, ys, strict=True):
            tint = color(row, order, theme)
            axes.annotate(
                text,
                xy=axes.transAxes.inverted().transform((x, y)),
                xycoords="axes fraction",
                xytext=axes.transAxes.inverted().transform((left if beyond else right, height)),
                textcoords="axes fraction",
                ha="right" if beyond else "left",
                va="center",
                color=tint,
                fontsize=9,
                bbox={
                    "boxstyle": "square,pad=0.15",
                    "fc": theme.paper,
                    "ec": "none",
                    "alpha": 0.85,
                },
                arrowprops={
                    "arrowstyle": "-",
                    "color": tint,
                    "lw": 0.7,
                    "alpha": 0.55,
                    "relpos": (1.0 if beyond else 0.0, 0.5),
                    "shrinkA": 0,
                    "shrinkB": 5,
                },
                zorder=4,
            )


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves sorted positions as little as needed so that neighbours are `gap` apart."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap, low) if placed else max(y, low))
    # What was pushed beyond the top comes back down, and pushes its neighbours.
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
