"""Frechet distances and label checks, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation.kernel_distance import kernel_distance
from exitkit.evaluation.metrics import Metrics, frechet_distance, label_check
from exitkit.sampling.distance import paired_distance


class FirstTwo(nn.Module):
    """Two numbers of each image are its features."""

    def forward(self, x):
        return x.flatten(1)[:, :2]


def test_paired_distance_is_the_root_mean_square_of_each_sample():
    images, reference = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    images[1] = 0.5
    images[2, 0] = 1.0  # half of the elements
    expected = torch.tensor([0.0, 0.5, math.sqrt(0.5)])
    torch.testing.assert_close(paired_distance(images, reference), expected)


def test_paired_distance_refuses_other_seeds():
    with pytest.raises(ShapeError, match="same list of seeds"):
        paired_distance(torch.zeros(3, 4), torch.zeros(2, 4))


def test_frechet_distance_has_the_closed_form_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    unit = unit - unit.mean(dim=0)
    unit = unit @ torch.linalg.inv(torch.linalg.cholesky(unit.T.cov())).T  # exactly white
    wide = 2.0 * unit + torch.tensor([3.0, 4.0])
    # |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) = 25 + 2 (1 + 4 - 2 * 2)
    distance = frechet_distance(wide[..., None], unit[..., None], FirstTwo())
    assert distance == pytest.approx(27.0, rel=1e-3)
    assert frechet_distance(unit[..., None], unit[..., None], FirstTwo()) < 1e-6


def test_frechet_distance_leaves_the_network_alone_and_explains_bad_ones():
    class Train(FirstTwo):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    network = Train().train()
    images = torch.randn(8, 3, 1, generator=torch.Generator().manual_seed(0))
    frechet_distance(images, images, network)
    assert network.training and network.weight.dtype == torch.float32

    class Scalar(nn.Module):
        def forward(self, x):
            return x.sum()

    with pytest.raises(ShapeError, match=r"expected features of shape \(1, d\)"):
        frechet_distance(images, images, Scalar())
    with pytest.raises(ShapeError, match="two of each"):
        frechet_distance(images[:1], images, network)


def test_judges_judge_in_evaluation_mode_and_keep_their_own():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()
            self.seen = set()

        def forward(self, x):
            self.seen.add((self.training, self.inner.training))
            return x

    judge = Modes()
    judge.inner.eval()
    label_check(torch.eye(3), torch.eye(3), judge)
    assert judge.seen == {(False, False)}
    assert judge.training and not judge.inner.training


def test_label_check_reports_confidence_and_agreement():
    def classifier(images):
        return images * math.log(9.0)  # one-hot images: probabilities 0.9 and 0.1

    images = torch.eye(2)[[0, 1, 0, 1]]
    reference = torch.eye(2)[[0, 1, 0, 0]]
    check = label_check(images, reference, classifier, batch_size=3)
    assert check.confidence == pytest.approx(0.9)
    assert check.agreement == 0.75
    assert check.commonest == 0.5


def test_metrics_measure_what_they_are_given():
    images, full = torch.rand(8, 1, 2, 2), torch.rand(8, 1, 2, 2)
    assert Metrics().frechet(images, full) is None and Metrics().labels(images, full) is None
    flat = nn.Flatten()
    own = Metrics(flat, classifier=flat)
    assert own.frechet(images, full) == pytest.approx(frechet_distance(images, full, flat))
    assert own.labels(images, full) == label_check(images, full, flat)
    real = torch.rand(8, 1, 2, 2)
    assert Metrics(flat, real).frechet(images, full) == pytest.approx(
        frechet_distance(images, real, flat)
    )
    assert own.kernel(images) is None and Metrics(reference=real).kernel(images) is None
    assert Metrics(flat, real, seed=3).kernel(images) == kernel_distance(images, real, flat, seed=3)
    for wrong in ({"repeats": 0}, {"repeats": True}, {"pictures": -1}, {"pictures": 2.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be a whole number"):
            Metrics(**wrong)
