"""Curves: what an exit costs and what it saves, and how exits err over depth and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exitkit._compat import require
from exitkit.evaluation.report.diagnostics import LayerErrors
from exitkit.evaluation.report.result import Row
from exitkit.evaluation.report.style import (
    MARKERS,
    Picture,
    Theme,
    color,
    draw,
    family_order,
    ramp,
)


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
        _log_ticks(axes)
        _label(figure, axes, shown, order, theme)

    return draw(
        paint,
        name="tradeoff",
        title="What a saving costs",
        alt="Log plot of the distance to the full run over executed MACs. "
        + "; ".join(f"{r.name}: {r.distance.mean:.3g} at {r.cost:.2f}" for r in shown),
        caption="Lower and further left is better. Colour tells the model. Filled disc: its "
        "policy; diamond: the static schedule read from that policy; square: always the same exit; "
        "cross: its own network without exits, where that was fine-tuned; triangle: the bare model "
        "with fewer steps; pentagon: another network in its place. Bars are 95 % intervals over seeds.",
        width=8.6,
        height=4.6,
    )


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


def _label(figure: Any, axes: Any, rows: Sequence[Row], order: Sequence[str], theme: Theme) -> None:
    """Writes every row's name in a column beside its neighbours, without overlaps."""
    figure.canvas.draw()
    box = axes.get_window_extent()
    gap = 15 / 72 * figure.dpi
    placed: list[tuple[Row, float, float, float]] = []
    for row in rows:
        x, y = axes.transData.transform((row.cost, row.distance.mean))
        placed.append((row, x, y, y))
    # Rows whose labels could meet share a column; a label is roughly a third of the axes wide.
    placed.sort(key=lambda item: item[1])
    columns: list[list[tuple[Row, float, float, float]]] = []
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
        for (row, x, y, _), height in zip(column, ys, strict=True):
            tint = color(row, order, theme)
            axes.annotate(
                row.name,
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


def layer_errors(errors: Mapping[str, LayerErrors], bands: int = 4) -> Picture | None:
    """Mean error over depth, one line for each part of the trajectory (the paper's figure 1).

    Arguments:
        errors: Entry name to its errors.
        bands: Parts of the trajectory.

    Returns:
        The figure; None without errors.
    """
    # One exit makes no line over depth.
    errors = {name: error for name, error in errors.items() if error.error.shape[1] > 1}
    if not errors:
        return None

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(1, len(errors), sharey=True, squeeze=False)[0]
        for axes, (name, error) in zip(panels, errors.items(), strict=True):
            parts = error.bands(bands)
            depths = range(1, error.error.shape[1] + 1)
            for (first, last, values), tint in zip(parts, ramp(theme, len(parts)), strict=True):
                text = f"t {first:.0f}–{last:.0f}"
                axes.plot(depths, values.tolist(), "o-", color=tint, markersize=4, label=text)
            axes.set(yscale="log", title=name, xlabel="exit after block", xticks=list(depths))
            _log_ticks(axes)
        panels[0].set_ylabel("gap to the full output (relative, log)")
        panels[-1].legend(fontsize=8.5)

    return draw(
        paint,
        name="error_by_layer",
        title="Error by layer",
        alt="Mean gap between each exit's output and the full output over depth, by part of the "
        "trajectory, for " + ", ".join(errors) + ".",
        caption="Each point is the root mean square gap between an exit's output and the full "
        "model's at the same input, over the size of the full output: 1 is as bad as answering "
        "zero. Lines run from the noisy start (light) to the clean end (dark) of sampling.",
        width=max(4.6, 3.6 * len(errors) + 0.6),
        height=3.6,
    )


def loss_by_timestep(errors: Mapping[str, LayerErrors]) -> Picture | None:
    """Error of every exit over the timestep (the paper's figure 3).

    Arguments:
        errors: Entry name to its errors.

    Returns:
        The figure; None without errors.
    """
    if not errors:
        return None

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(1, len(errors), sharey=True, squeeze=False)[0]
        for axes, (name, error) in zip(panels, errors.items(), strict=True):
            count = error.error.shape[1]
            for k, tint in enumerate(ramp(theme, count)):
                # Labels of all exits would not fit; first, middle and last tell the order.
                text = f"exit {k + 1}" if k in (0, count // 2, count - 1) else None
                axes.plot(error.timesteps, error.error[:, k].tolist(), color=tint, label=text)
            axes.set(yscale="log", title=name, xlabel="timestep (sampling goes left to right)")
            axes.invert_xaxis()
            _log_ticks(axes)
        panels[0].set_ylabel("gap to the full output (relative, log)")
        panels[-1].legend(fontsize=8.5)

    return draw(
        paint,
        name="loss_by_timestep",
        title="Error by timestep",
        alt="Gap between each exit's output and the full output over the timestep, one line an "
        "exit, for " + ", ".join(errors) + ".",
        caption="The same gaps over time: one line an exit, shallow (light) to deep (dark). Where "
        "lines lie apart depth matters; where they meet, the blocks between are spent in vain. "
        "A carried exit is judged on its policy's own way: its line rises from one full step to "
        "the next.",
        width=max(4.6, 3.6 * len(errors) + 0.6),
        height=3.6,
    )


def _log_ticks(axes: Any) -> None:
    """Plain numbers on a log axis, and more of them where it spans little."""
    ticker = require("matplotlib.ticker", "report", "The report")
    low, high = axes.get_ylim()
    if high / low < 300:
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
