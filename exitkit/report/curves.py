"""Curves: how exits err over depth and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exitkit.evaluation.figure_data import LayerErrors
from exitkit.report.style import Picture, Theme, draw, log_ticks, ramp


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
            log_ticks(axes)
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
            log_ticks(axes)
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
