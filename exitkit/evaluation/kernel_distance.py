"""Kernel distance between sets of images: unbiased at every number of samples, with an interval."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exitkit.evaluation.features import check_sets, vectors
from exitkit.evaluation.rows import Interval

WHAT = "Kernel distance"


def kernel_distance(
    images: Tensor,
    reference: Tensor,
    features: nn.Module,
    *,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
) -> Interval:
    """Squared maximum mean discrepancy under the cubic kernel, known as KID (arXiv 1801.01401, section 4).

    Unlike the Frechet distance it needs no more samples than features, and its mean does not depend
    on how many there are: it may be negative where the sets are alike.

    Arguments:
        images: (n, *shape), n of at least 2.
        reference: (m, *shape), taken as given: the interval is that of the images alone.
        features: Maps images to (batch, d).
        resamples: Redrawings of the images.
        seed: Seed of the redrawing; equal seeds and numbers of images redraw the same ones.
        batch_size: Images a call of `features`.

    Returns:
        The distance and its 95 % bootstrap interval.

    Raises:
        ShapeError: If a set has fewer than two images, or features are no vectors.
    """
    check_sets(WHAT, images, reference)
    mine, real = (vectors(WHAT, i, features, batch_size) for i in (images, reference))
    within = _kernel(mine, mine).fill_diagonal_(0)
    across = _kernel(mine, real).mean(dim=1)
    theirs = _kernel(real, real).fill_diagonal_(0).sum() / (len(real) * (len(real) - 1))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(mine), (resamples, len(mine)), generator=generator)
    counts = torch.zeros(resamples, len(mine), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    weights = torch.cat([torch.ones(1, len(mine), dtype=torch.float64), counts])
    # An image drawn twice is no pair with itself: such pairs would pull the sets apart.
    pairs = weights.sum(dim=1) ** 2 - (weights**2).sum(dim=1)
    own = ((weights @ within) * weights).sum(dim=1) / pairs
    found = own + theirs - 2 * (weights @ across) / weights.sum(dim=1)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = (
        found[1:].nanquantile(tails).tolist()
    )  # of few images one may be drawn alone: no pair
    return Interval(float(found[0]), low, high)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
