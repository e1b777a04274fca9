"""Accuracy over executed MACs: what per-image depth buys beyond always leaving at one exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitkit.report.classes import ClassRow
from exitkit.report.style import MARKERS, Picture, Theme, draw

STATIC = ("mode schedule", "fixed exit", "no exit")


def accuracy_over_cost(rows: Sequence[ClassRow]) -> Picture:
    """Discs for policies, a line through the static exits of each model, a star for the full one.

    Arguments:
        rows: The rows of a comparison.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    models = list(dict.fromkeys(row.model or row.family for row in rows if row.kind != "full"))

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        for index, model in enumerate(models):
            tint = theme.families[index % len(theme.families)]
            mine = [row for row in rows if (row.model or row.family) == model]
            line = sorted({(r.cost, 100 * r.accuracy.mean) for r in mine if r.kind in STATIC})
            if line:
                axes.plot(*zip(*line, strict=True), "s--", color=tint, mfc=theme.paper, lw=1, ms=5)
            dots = [(r.cost, 100 * r.accuracy.mean) for r in mine if r.kind not in STATIC]
            if dots:
                axes.plot(*zip(*dots, strict=True), "o", color=tint, ms=7, label=model)
        full = next(row for row in rows if row.kind == "full")
        axes.plot([full.cost], [100 * full.accuracy.mean], MARKERS["full"], color=theme.ink, ms=12)
        axes.set_xlabel("executed MACs / MACs of the full model")
        axes.set_ylabel("accuracy (%)")
        axes.set_xlim(0, 1.06 * max(1.0, *(row.cost for row in rows)))
        axes.legend(loc="lower right", fontsize=9)

    return draw(
        paint,
        name="accuracy",
        title="What a saving costs",
        alt="Accuracy over executed MACs. "
        + "; ".join(f"{r.name}: {r.accuracy.mean:.1%} at {r.cost:.2f}" for r in rows),
        caption="Higher and further left is better. Filled discs: policies, coloured by the model "
        "they run on; hollow squares on a dashed line: that model's static exits; star: the full "
        "model.",
        width=7.6,
        height=4.6,
    )
