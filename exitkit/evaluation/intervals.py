"""Means over samples with confidence intervals, all differences and ratios in pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.evaluation.rows import Interval


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over samples.

    Arguments:
        values: (n, ...), what was measured for every sample.
        statistic: Maps resamples (r, n, ...) to (r,); the mean over all but the first axis if None.
        level: Coverage of the interval, in (0, 1).
        resamples: How often the samples are redrawn.
        seed: Seed of the redrawing.

    Returns:
        The statistic of `values` and the interval; a point if there is one seed.

    Raises:
        ShapeError: If `values` is empty.
    """
    if values.dim() < 1 or not len(values):
        raise ShapeError(
            f"bootstrap: expected one entry a seed, (n, ...), got shape {tuple(values.shape)}."
        )
    statistic = statistic or (lambda drawn: drawn.flatten(1).mean(dim=1))
    values = values.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = statistic(values[drawn]).quantile(tails).tolist()
    return Interval(float(statistic(values[None])[0]), low, high)


def distance_ratio(mine: Tensor, theirs: Tensor, *, seed: int = 0) -> Interval:
    """Mean distance of one row over that of another, resampled in pairs.

    Arguments:
        mine: (n,), distances of the first row.
        theirs: (n,), distances of the second row for the same seeds.
        seed: Seed of the redrawing.

    Returns:
        The ratio; below one where the first row is closer.
    """

    def ratio(drawn: Tensor) -> Tensor:
        means = drawn.mean(dim=1)
        return means[:, 0] / means[:, 1].clamp_min(torch.finfo(means.dtype).tiny)

    return bootstrap(torch.stack([mine, theirs], dim=1), ratio, seed=seed)
