"""What is measured of generated samples, beside their cost and their distance to the full model's.

Early exit changes a sample, so the first question is how far: the *paired* distance is the root
mean square difference between two samples grown from the same seed. It is sharp with a few dozen
seeds, where a Frechet distance needs thousands, and it cannot be flattered: a different but equally
good image counts as far. The Frechet and the kernel distance in a feature space ask the other question,
whether the set of images is still as good, and the label checks ask whether a classifier still reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exitkit._compat import require
from exitkit.errors import ConfigError, expect
from exitkit.evaluation.features import check_sets, judging, width
from exitkit.evaluation.kernel_distance import kernel_distance
from exitkit.evaluation.rows import Interval


@dataclass(frozen=True, eq=False)
class Metrics:
    """What `compare` measures, beside cost and distance to the full model.

    Attributes:
        features: Maps images to vectors; adds the Frechet distance, and the kernel distance to a
            `reference`.
        reference: Real images for them, (n, *shape); the full run's own if None, and then a small
            distance only says that the two sets are alike.
        classifier: Maps images to logits; adds confidence and label agreement of generated images.
        clock: Whether to report the wall clock.
        repeats: How often everything runs for the clock, at least 1; numbers are those of the first
            time. If None, 1 for samplers and 3 for batches of images.
        exits: Whether to measure the errors of single exits along the trajectory, and uncertainty
            maps.
        pictures: How many samples keep their images for the report.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If a field is out of range or of another type.
    """

    features: nn.Module | None = None
    reference: Tensor | None = None
    classifier: Callable[[Tensor], Tensor] | None = None
    clock: bool = True
    repeats: int | None = None
    exits: bool = True
    pictures: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "classifier"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(
                    f"Metrics: {name} must be a network that images go through, or None, got "
                    f"{getattr(self, name)!r}. Leave it out to measure without."
                )
        if self.reference is not None:
            given = "Pass real images, (n, *shape), or leave it out."
            expect("Metrics: reference", self.reference, Tensor, "a tensor or None", given)
        for name, least in (("repeats", 1), ("pictures", 0)):
            value = getattr(self, name)
            if name == "repeats" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"Metrics: {name} must be a whole number of at least {least}, got {value!r}."
                )

    def frechet(self, images: Tensor, full: Tensor) -> float | None:
        """Frechet distance to the reference images.

        Arguments:
            images: (n, *shape).
            full: What the full model made of the same seeds, which stands in for a reference.

        Returns:
            The distance; None without features.
        """
        if self.features is None:
            return None
        real = full if self.reference is None else self.reference
        return frechet_distance(images, real, self.features)

    def kernel(self, images: Tensor) -> Interval | None:
        """Kernel distance to the reference images.

        Arguments:
            images: (n, *shape).

        Returns:
            The distance with its interval over the images; None without features or reference: samples
            of the same seeds are not independent of the full run's, as this distance takes them to be.
        """
        if self.features is None or self.reference is None:
            return None
        return kernel_distance(images, self.reference, self.features, seed=self.seed)

    def labels(self, images: Tensor, full: Tensor) -> LabelCheck | None:
        """What the classifier says about images.

        Arguments:
            images: (n, *shape).
            full: What the full model made of the same seeds.

        Returns:
            Confidence and agreement; None without a classifier.
        """
        return None if self.classifier is None else label_check(images, full, self.classifier)


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
    check_sets("Frechet distance", images, reference)
    fid = require("torchmetrics.image.fid", "report", "The Frechet distance")
    with judging(features) as judge:
        size = width("Frechet distance", judge, images[:1])
        metric = fid.FrechetInceptionDistance(feature=_Features(judge, size), normalize=True)
        metric.eval()
        for batch in reference.split(batch_size):
            metric.update(batch, real=True)
        for batch in images.split(batch_size):
            metric.update(batch, real=False)
        return max(float(metric.compute()), 0.0)


class _Features(nn.Module):
    """Double precision for the covariances, and the width that torchmetrics would else probe."""

    def __init__(self, features: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self._features = features
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images).flatten(1).double()


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
    with judging(classifier) as judge:
        mine = torch.cat([judge(batch) for batch in images.split(batch_size)]).softmax(dim=1)
        theirs = torch.cat([judge(batch) for batch in reference.split(batch_size)])
    labels = mine.argmax(dim=1)
    same = labels == theirs.argmax(dim=1)
    commonest = int(labels.bincount().max()) / len(labels)
    return LabelCheck(float(mine.amax(dim=1).mean()), float(same.float().mean()), commonest)
