"""Accuracy over executed MACs: what per-image depth buys beyond always leaving at one exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitkit.evaluation.rows import Row
from exitkit.report.style import MARKERS, Picture, Theme, draw

STATIC = ("mode schedule", "fixed exit", "no exit")


def accuracy_over_cost(rows: Sequence[Row]) -> Picture | None:
    """Discs for policies, a line through the static exits of each model, a star for the full one.

    Arguments:
        rows: The rows of a comparison.

    Returns:
        The figure; None where no row has an accuracy.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    points = {row.name: (row.cost, 100 * row.accuracy.mean) for row in rows if row.accuracy}
    shown = [row for row in rows if row.name in points]
    models = list(dict.fromkeys(row.model or row.family for row in shown if row.kind != "full"))
    if not shown:
        return None

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        for index, model in enumerate(models):
            tint = theme.families[index % len(theme.families)]
            mine = [row for row in shown if (row.model or row.family) == model]
            line = sorted({points[r.name] for r in mine if r.kind in STATIC})
            if line:
                axes.plot(*zip(*line, strict=True), "s--", color=tint, mfc=theme.paper, lw=1, ms=5)
            dots = [points[r.name] for r in mine if r.kind not in STATIC]
            if dots:
                axes.plot(*zip(*dots, strict=True), "o", color=tint, ms=7, label=model)
        for full in [points[row.name] for row in shown if row.kind == "full"]:
            axes.plot([full[0]], [full[1]], MARKERS["full"], color=theme.ink, ms=12)
        axes.set_xlabel("executed MACs / MACs of the full model")
        axes.set_ylabel("accuracy (%)")
        axes.set_xlim(0, 1.06 * max(1.0, *(row.cost for row in shown)))
        axes.legend(loc="lower right", fontsize=9)

    return draw(
        paint,
        name="accuracy",
        title="What a saving costs",
        alt="Accuracy over executed MACs. "
        + "; ".join(
            f"{name}: {right:.1f}% at {cost:.2f}" for name, (cost, right) in points.items()
        ),
        caption="Higher and further left is better. Filled discs: policies, coloured by the model "
        "they run on; hollow squares on a dashed line: that model's static exits; star: the full "
        "model.",
        width=7.6,
        height=4.6,
    )
