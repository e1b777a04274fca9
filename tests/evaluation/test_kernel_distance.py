"""The kernel distance against a naive loop, torchmetrics, and what it converges to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from exitkit.errors import ShapeError
from exitkit.evaluation.kernel_distance import kernel_distance

FLAT = nn.Flatten()


def drawn(count: int, seed: int, shift: float = 0.0, size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, 1, generator=generator, dtype=torch.float64) + shift


def naive(images: Tensor, reference: Tensor) -> float:
    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        found = [
            (float(x @ y) / len(x) + 1) ** 3
            for i, x in enumerate(a.flatten(1))
            for j, y in enumerate(b.flatten(1))
            if not (same and i == j)
        ]
        return sum(found) / len(found)

    return (
        mean(images, images, True) + mean(reference, reference, True)
        - 2 * mean(images, reference, False)
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_unbiased_estimate(seed: int) -> None:
    images, reference = drawn(12, seed), drawn(9, seed + 100, 0.4)
    found = kernel_distance(images, reference, FLAT, batch_size=5)
    assert found.mean == pytest.approx(naive(images, reference), rel=1e-9)
    assert found.mean != pytest.approx(naive(images[:-1], reference), rel=1e-3)  # the control


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_torchmetrics_agrees() -> None:
    class Vectors(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    images, reference = drawn(40, 0), drawn(40, 1, 0.5)
    kid = KernelInceptionDistance(Vectors(), subsets=1, subset_size=40, normalize=True)
    kid.update(reference, real=True)
    kid.update(images, real=False)
    assert kernel_distance(images, reference, FLAT).mean == pytest.approx(
        float(kid.compute()[0]), rel=1e-5
    )


def test_alike_sets_are_zero_apart_on_average_and_the_interval_says_how_sure_that_is() -> None:
    reference = drawn(1000, 10**6)
    found = [kernel_distance(drawn(50, s), reference, FLAT, seed=s) for s in range(200)]
    means = torch.tensor([f.mean for f in found])
    assert abs(float(means.mean())) < 3 * float(means.std()) / 200**0.5
    assert min(means) < 0  # unbiased, so not above zero by force
    # What the sets are drawn from is zero from the reference, up to the latter's own error.
    inside = sum(f.low <= 0 <= f.high for f in found) / len(found)
    assert 0.85 <= inside <= 1.0, inside


def test_few_images_have_an_interval() -> None:
    found = kernel_distance(drawn(2, 0), drawn(8, 1), FLAT)
    assert found.low <= found.mean <= found.high  # half of the redrawings are one image twice


def test_another_distribution_is_found() -> None:
    near, far = (kernel_distance(drawn(200, 1, s), drawn(400, 2), FLAT) for s in (0.0, 1.0))
    assert far.low > near.high and near.low < 0.05


def test_too_few_and_what_is_no_vector() -> None:
    with pytest.raises(ShapeError, match="Kernel distance: got 1 and 8 images, needs two of each"):
        kernel_distance(drawn(1, 0), drawn(8, 1), FLAT)

    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(ShapeError, match=r"Kernel distance: expected features of shape \(1, d\)"):
        kernel_distance(drawn(4, 0), drawn(8, 1), Scalar())
