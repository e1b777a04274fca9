r"""Distances between samples, with their uncertainty.

Early exit changes a sample, so the first question is how far: the *paired* distance is the root
mean square difference between two samples grown from the same seed. It is sharp with a few dozen
seeds, where a Frechet distance needs thousands, and it cannot be flattered: a different but equally
good image counts as far. The Frechet distance in a feature space asks the other question, whether
the set of images is still as good, and the label checks ask whether a classifier still reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exitkit._compat import require
from exitkit.errors import ShapeError
from exitkit.evaluation.rows import Interval


@dataclass(frozen=True)
class LabelCheck:
    """What a classifier says about generated images.

    Attributes:
        confidence: Mean over the images of the largest class probability, in [0, 1].
        agreement: Share of the images that get the label of their reference, in [0, 1].
        commonest: Share of the images that get the commonest label, in (0, 1].
    """

    confidence: float
    agreement: float
    commonest: float


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over seeds.

    Arguments:
        values: (n, ...), what was measured for every seed.
        statistic: Maps resamples (r, n, ...) to (r,); the mean over all but the first axis if None.
        level: Coverage of the interval, in (0, 1).
        resamples: How often the seeds are redrawn.
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


def distance_ratio(mine: Tensor, theirs: Tensor) -> Interval:
    """Mean distance of one rival over that of another, resampled in pairs.

    Arguments:
        mine: (n,), distances of the first rival.
        theirs: (n,), distances of the second rival for the same seeds.

    Returns:
        The ratio; below one where the first rival is closer.
    """

    def ratio(drawn: Tensor) -> Tensor:
        means = drawn.mean(dim=1)
        return means[:, 0] / means[:, 1].clamp_min(torch.finfo(means.dtype).tiny)

    return bootstrap(torch.stack([mine, theirs], dim=1), ratio)


@torch.no_grad()
def frechet_distance(
    images: Tensor, reference: Tensor, features: nn.Module, *, batch_size: int = 256
) -> float:
    """Frechet distance between two sets of images in a feature space.

    The distance of small sets is biased upwards, by about the same amount for equal sizes: compare
    numbers of equal `n` and never with published ones.

    Arguments:
        images: (n, *shape), n of at least 2; a full-rank covariance wants more than the features.
        reference: (m, *shape).
        features: Maps images to (batch, d).
        batch_size: Images a call of `features`.

    Returns:
        The squared Frechet distance, as "FID" is.

    Raises:
        MissingExtraError: If torchmetrics is not installed.
        ShapeError: If a set has fewer than two images.
    """
    if min(len(images), len(reference)) < 2:
        raise ShapeError(
            f"Frechet distance: got {len(images)} and {len(reference)} images, needs two of each."
        )
    fid = require("torchmetrics.image.fid", "report", "The Frechet distance")
    with _judging(features) as judge:
        width = _width(judge, images[:1])
        metric = fid.FrechetInceptionDistance(feature=_Features(judge, width), normalize=True)
        metric.eval()
        for batch in reference.split(batch_size):
            metric.update(batch, real=True)
        for batch in images.split(batch_size):
            metric.update(batch, real=False)
        return max(float(metric.compute()), 0.0)


@contextmanager
def _judging(network: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """A network in evaluation mode, fed where its weights are; answers come back to the CPU."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    flags = [module.training for module in modules]
    first = next((p for module in modules[:1] for p in module.parameters()), None)
    device = first.device if first is not None else torch.device("cpu")
    for module in modules:
        module.training = False
    try:
        yield lambda images: network(images.to(device)).cpu()
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training


class _Features(nn.Module):
    """Double precision for the covariances, and the width that torchmetrics would else probe."""

    def __init__(self, features: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self._features = features
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images).flatten(1).double()


def _width(features: Callable[[Tensor], Tensor], image: Tensor) -> int:
    out = features(image)
    if out.dim() < 2 or len(out) != 1:
        raise ShapeError(
            f"Frechet distance: expected features of shape (1, d) for one image, got "
            f"{tuple(out.shape)}. Pass a module that maps images to one vector each."
        )
    return out[0].numel()


@torch.no_grad()
def label_check(
    images: Tensor,
    reference: Tensor,
    classifier: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
) -> LabelCheck:
    """Whether a classifier is sure of the images, and reads them as it reads the reference.

    Arguments:
        images: (n, *shape).
        reference: (n, *shape), grown from the same seeds.
        classifier: Maps images to logits (batch, classes).
        batch_size: Images a call of `classifier`.

    Returns:
        Mean largest probability, share of equal labels, share of the commonest one.
    """
    with _judging(classifier) as judge:
        mine = torch.cat([judge(batch) for batch in images.split(batch_size)]).softmax(dim=1)
        theirs = torch.cat([judge(batch) for batch in reference.split(batch_size)])
    labels = mine.argmax(dim=1)
    same = labels == theirs.argmax(dim=1)
    commonest = int(labels.bincount().max()) / len(labels)
    return LabelCheck(float(mine.amax(dim=1).mean()), float(same.float().mean()), commonest)
