"""Images: samples side by side, where they differ, depth as a map, uncertainty as maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from exitkit.evaluation.figure_data import DepthMap, UncertaintyMaps
from exitkit.report.style import Picture, Theme, colormap, draw

GAIN = 8.0
"""How much differences are brightened, so that an eye can see them."""


def sample_grid(images: Mapping[str, Tensor]) -> Picture | None:
    """The same seeds under every row.

    Arguments:
        images: Row name to (n, *shape) in [-1, 1]; the full run first.

    Returns:
        The figure; None without two-dimensional images.
    """
    shown = {name: batch for name, batch in images.items() if batch.dim() == 4}
    if not shown:
        return None
    return _grid(
        {name: _pixels(batch) for name, batch in shown.items()},
        name="samples",
        title="The same seeds, side by side",
        alt=f"Grid of generated images, one column a seed, one row each for {', '.join(shown)}.",
        caption="One column is one seed. Look down a column: a row that left too early has "
        "changed the picture.",
    )


def difference_grid(images: Mapping[str, Tensor]) -> Picture | None:
    """How far every row is from the full run, pixel by pixel.

    Arguments:
        images: Row name to (n, *shape) in [-1, 1]; the full run first.

    Returns:
        The figure; None without a second row.
    """
    shown = {name: batch for name, batch in images.items() if batch.dim() == 4}
    if len(shown) < 2:
        return None
    (full, reference), *others = shown.items()
    gaps = {
        name: ((batch - reference).abs().amax(dim=1) / 2 * GAIN).clamp(0, 1)
        for name, batch in others
    }
    return _grid(
        gaps,
        name="differences",
        title="Where they differ from the full run",
        alt="Grid of absolute differences to the full run, one column a seed, one row each for "
        f"{', '.join(gaps)}.",
        caption=f"Absolute difference to the row “{full}” above, brightened {GAIN:g} times; "
        "a plain square is an identical image.",
        scale=True,
    )


def _grid(
    rows: Mapping[str, Tensor],
    *,
    name: str,
    title: str,
    alt: str,
    caption: str,
    scale: bool = False,
) -> Picture:
    """Strips of images under each other; (n, h, w) are values in [0, 1], (n, h, w, 3) colours."""
    first = next(iter(rows.values()))
    count, height, width = first.shape[:3]
    label = 0.085 * max(len(text) for text in rows) + 0.15
    cell = min(0.78, (9.2 - label) / count)

    def paint(figure: Any, theme: Theme) -> None:
        figure.set_layout_engine("none")
        wide, high = figure.get_size_inches()
        for i, (text, batch) in enumerate(rows.items()):
            bottom = 1 - (i + 1) * (cell * height / width + 0.06) / high
            place = (label / wide, bottom, count * cell / wide, cell * height / width / high)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            axes.imshow(
                _strip(batch),
                cmap=colormap(theme) if scale else "gray",
                vmin=0,
                vmax=1,
                aspect="auto",
            )
            middle = bottom + place[3] / 2
            figure.text(
                (label - 0.12) / wide, middle, text, ha="right", va="center", color=theme.ink
            )

    return draw(
        paint,
        name=name,
        title=title,
        alt=alt,
        caption=caption,
        width=label + count * cell + 0.02,
        height=len(rows) * (cell * height / width + 0.06),
    )


def depth_maps(depths: Mapping[str, DepthMap]) -> Picture | None:
    """Depth of every sample at every step, one panel a policy.

    Arguments:
        depths: Row name to its depths.

    Returns:
        The figure; None without depths.
    """
    if not depths:
        return None
    columns = min(len(depths), 3)
    lines = -(-len(depths) // columns)

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in panels[len(depths) :]:
            axes.set_axis_off()
        for axes, (name, found) in zip(panels, depths.items(), strict=False):
            # Samples in order of their own cost: a per-sample policy shows as a slope.
            spent = found.share[:, found.share.mean(dim=0).argsort()]
            steps, count = spent.shape
            heat = axes.imshow(
                spent.T.numpy(),
                cmap=colormap(theme),
                vmin=0,
                vmax=1,
                aspect="auto",
                extent=(0, steps, count, 0),
            )
            axes.grid(False)
            ticks = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
            axes.set_xticks([i + 0.5 for i in ticks])
            axes.set_xticklabels([f"{found.timesteps[i]:.0f}" for i in ticks])
            axes.set(title=name, xlabel="timestep", ylabel="samples, cheapest first")
            axes.set_yticks([])
        figure.colorbar(heat, ax=panels.tolist(), label="share of the blocks run", aspect=30)

    return draw(
        paint,
        name="depth_by_timestep",
        title="Depth by timestep",
        alt=f"Heat maps of the executed share of the network by sample and step, for "
        f"{', '.join(depths)}.",
        caption="One line is one sample, one column one sampler step, from noise (left) to image "
        "(right); strong colour ran the whole network. Vertical stripes mean that the timestep "
        "alone decides, ragged edges that samples differ.",
        width=9.2,
        height=2.5 * lines + 0.4,
    )


def uncertainty_figure(name: str, maps: UncertaintyMaps) -> Picture | None:
    """State, predicted uncertainty and actual gap at a few steps (the paper's figure 6).

    Arguments:
        name: Name of the entry.
        maps: Its maps; the first sample is shown.

    Returns:
        The figure; None if samples are no images.
    """
    if maps.noisy.dim() != 5:
        return None
    noisy = _pixels(maps.noisy[:, 0])
    # Channels are averaged: what is shown is where, not in which colour.
    predicted, actual = maps.predicted[:, 0].mean(dim=1), maps.actual[:, 0].mean(dim=1)
    top = max(float(predicted.max()), float(actual.quantile(0.995)), 1e-6)

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(3)
        named = (("state", noisy), ("predicted", predicted), ("actual", actual))
        for axes, (text, part) in zip(panels, named, strict=True):
            plain = text == "state"
            strip = _strip(part)
            heat = axes.imshow(
                strip,
                cmap="gray" if plain else colormap(theme),
                vmin=0,
                vmax=1 if plain else top,
            )
            axes.grid(False)
            axes.set(xticks=[], yticks=[], ylabel=text)
            axes.spines[:].set_visible(False)
        wide = strip.shape[1] / len(maps.timesteps)
        middles = [(i + 0.5) * wide - 0.5 for i in range(len(maps.timesteps))]
        panels[0].set_xticks(middles, [f"t {timestep:.0f}" for timestep in maps.timesteps])
        panels[0].tick_params(top=True, bottom=False, labeltop=True, labelbottom=False)
        panels[0].tick_params(length=0, labelcolor=theme.ink, labelsize=10)
        figure.colorbar(heat, ax=panels.tolist(), aspect=36, label="uncertainty", panchor=False)

    slug = "".join(c if c.isalnum() else "_" for c in name)
    return draw(
        paint,
        name=f"uncertainty_{slug}",
        title=f"Uncertainty maps: {name}",
        alt=f"For one sample at {len(maps.timesteps)} steps: the sampler's state, the uncertainty "
        f"that the head after {maps.path} predicts, and the actual gap.",
        caption=f"One sample on its way from noise (left) to image. Top: the sampler's state. "
        f"Middle: what the head after {maps.path} predicts. Bottom: the gap it should have "
        "predicted, on the same scale.",
        width=9.2,
        height=3.5,
    )


def _pixels(images: Tensor) -> Tensor:
    """(n, C, H, W) in [-1, 1] to (n, H, W) or, with three channels, (n, H, W, 3), in [0, 1]."""
    scaled = ((images.float().cpu() + 1) / 2).clamp(0, 1)
    return scaled.movedim(1, -1) if scaled.shape[1] == 3 else scaled.mean(dim=1)


def _strip(batch: Tensor) -> Any:
    """Images (n, h, w, ...) beside each other, (h, n * w, ...), a thin gap between them."""
    gap = max(1, batch.shape[2] // 16)
    padded = torch.full(
        (batch.shape[0], batch.shape[1], batch.shape[2] + gap, *batch.shape[3:]), torch.nan
    )
    padded[:, :, : batch.shape[2]] = batch
    joined = padded.movedim(0, 1).flatten(1, 2)[:, :-gap]
    if joined.dim() == 2:
        return joined.numpy()
    # Colours know no NaN; an alpha channel leaves the gaps open.
    alpha = (~joined[..., :1].isnan()).float()
    return torch.cat([joined.nan_to_num(0.0), alpha], dim=-1).numpy()
