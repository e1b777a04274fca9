"""The trade: what a saving costs, policy by policy and beside fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exitkit.evaluation.rows import Row
from exitkit.report.labels import Box, Point, place
from exitkit.report.style import (
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
_ALL_NAMED = 16
"""Names up to which baselines have theirs too; of more, nobody could tell to which mark they belong."""


@dataclass(frozen=True)
class _Inks:
    """The colours of rows in a theme."""

    theme: Theme
    order: Sequence[str]

    def of(self, row: Row) -> str:
        """Colour of a row."""
        return color(row, self.order, self.theme)


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
        for line in _fewer(shown):
            axes.plot(
                [row.cost for row in line],
                [row.distance.mean for row in line],
                color=theme.steps,
                linestyle=(0, (4, 3)),
                linewidth=1.2,
                zorder=1,
            )
        inks = _Inks(theme, order)
        for row in shown:
            _mark(axes, row, inks)
        for curve in _curves(shown):
            axes.plot(
                [row.cost for row in curve],
                [row.distance.mean for row in curve],
                color=inks.of(curve[0]),
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
        _label(figure, axes, _labels(shown), shown, inks)

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


def _fewer(rows: Sequence[Row]) -> list[list[Row]]:
    """The bare model with fewer steps: a line for each sampler, from the cheapest up."""
    fewer = sorted((row for row in rows if row.kind == "fewer steps"), key=lambda row: row.cost)
    samplers = dict.fromkeys(row.sampler for row in fewer)
    return [[row for row in fewer if row.sampler == sampler] for sampler in samplers]


def _labels(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """What is written beside which row: of a curve, and of many step counts, the cheapest alone.

    Where there are many, static schedules, fixed exits and runs in full are told by their marks.
    """
    curves = _curves(rows)
    written = {id(curve[0]): curve[0].family for curve in curves}
    silent = {id(row) for curve in curves for row in curve[1:]}
    fewer = sorted((r for r in rows if r.kind == "fewer steps"), key=lambda r: r.cost)
    if len(fewer) > _FEWER_NAMED:
        written[id(fewer[0])] = "fewer steps"
        silent |= {id(row) for row in fewer[1:]}
    for row in rows:
        # A curve's points share one fine-tuned network, whose run in full has the first one's name.
        if row.kind == "no exit" and row.family in {curve[0].family for curve in curves}:
            written[id(row)] = f"{row.family}, no exit"
    named = [(row, written.get(id(row), row.name)) for row in rows if id(row) not in silent]
    if len(named) <= _ALL_NAMED:
        return named
    return [(row, name) for row, name in named if row.kind in ("policy", "network", "fewer steps")]


def _mark(axes: Any, row: Row, inks: _Inks) -> None:
    mean, low, high = row.distance.mean, row.distance.low, row.distance.high
    hollow = row.kind in ("mode schedule", "fixed exit")
    axes.errorbar(
        [row.cost],
        [mean],
        yerr=[[max(mean - low, 0)], [max(high - mean, 0)]],
        fmt=MARKERS[row.kind],
        color=inks.of(row),
        markersize=7,
        markerfacecolor=inks.theme.paper if hollow else inks.of(row),
        markeredgewidth=1.6,
        elinewidth=1.2,
        capsize=2.5,
        zorder=3,
    )


def _label(
    figure: Any, axes: Any, labels: Sequence[tuple[Row, str]], shown: Sequence[Row], inks: _Inks
) -> None:
    """Writes names beside their marks."""
    figure.draw_without_rendering()  # the layout is known only then

    def pixels(row: Row) -> Point:
        x, y = axes.transData.transform((row.cost, row.distance.mean))
        return float(x), float(y)

    def box(of: Any) -> Box:
        extent = of.get_window_extent()
        return Box(extent.x0, extent.y0, extent.x1, extent.y1)

    taken = [box(text) for text in axes.texts]
    sizes = []
    for _, name in labels:
        text = axes.text(0, 0, name, fontsize=9)
        extent = box(text)
        sizes.append((extent.x1 - extent.x0 + 6, extent.y1 - extent.y0 + 4))
        text.remove()
    anchors = [pixels(row) for row, _ in labels]
    lines = [[pixels(row) for row in line] for line in (*_curves(shown), *_fewer(shown))]
    for row in shown:
        ends = (max(end, axes.get_ylim()[0]) for end in (row.distance.low, row.distance.high))
        bar = [axes.transData.transform((row.cost, end)) for end in ends]
        lines.append([(float(x), float(y)) for x, y in bar])
    places = place(
        anchors,
        sizes,
        box(axes),
        marks=[pixels(row) for row in shown],
        lines=lines,
        taken=taken,
        gap=9 / 72 * figure.dpi,
    )
    inverse = axes.transAxes.inverted()
    for (row, name), anchor, where in zip(labels, anchors, places, strict=True):
        end = where.nearest(anchor)
        across = (end[0] - where.x0) / (where.x1 - where.x0)
        upward = (end[1] - where.y0) / (where.y1 - where.y0)
        axes.annotate(
            name,
            xy=inverse.transform(anchor),
            xycoords="axes fraction",
            xytext=inverse.transform(((where.x0 + where.x1) / 2, (where.y0 + where.y1) / 2)),
            textcoords="axes fraction",
            ha="center",
            va="center",
            color=inks.of(row),
            fontsize=9,
            bbox={
                "boxstyle": "square,pad=0.15",
                "fc": inks.theme.paper,
                "ec": "none",
                "alpha": 0.85,
            },
            arrowprops={
                "arrowstyle": "-",
                "color": inks.of(row),
                "lw": 0.7,
                "alpha": 0.55,
                "relpos": (across, upward),
                "shrinkA": 0,
                "shrinkB": 5,
            },
            zorder=4,
        )
