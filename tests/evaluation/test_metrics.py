"""Distances, their intervals, and the stopwatch, against closed forms and controlled clocks."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation.metrics import (
    bootstrap,
    distance_ratio,
    frechet_distance,
    label_check,
)
from exitkit.evaluation.timing import (
    MachineTimes,
    Stopwatch,
    foreign_share,
    interleave,
    machine_times,
    rotated,
)
from exitkit.sampling.distance import paired_distance


def test_paired_distance_is_the_root_mean_square_of_each_sample():
    images, reference = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    images[1] = 0.5
    images[2, 0] = 1.0  # half of the elements
    expected = torch.tensor([0.0, 0.5, math.sqrt(0.5)])
    torch.testing.assert_close(paired_distance(images, reference), expected)


def test_paired_distance_refuses_other_seeds():
    with pytest.raises(ShapeError, match="same list of seeds"):
        paired_distance(torch.zeros(3, 4), torch.zeros(2, 4))


def test_bootstrap_interval_of_a_mean_is_about_two_standard_errors():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap(values)
    error = float(values.std()) / math.sqrt(len(values))
    assert interval.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert interval.high - interval.mean == pytest.approx(1.96 * error, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap(values) == interval, "the same seed gives the same interval"


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for trial in range(200):
        drawn = torch.randn(60, generator=generator).exp()  # skewed on purpose
        interval = bootstrap(drawn, resamples=400, seed=trial)
        hits += interval.low <= math.exp(0.5) <= interval.high
    assert 0.85 <= hits / 200 <= 0.98


def test_bootstrap_of_one_seed_is_a_point_and_of_none_an_error():
    interval = bootstrap(torch.tensor([0.3]))
    assert interval.low == interval.mean == interval.high == pytest.approx(0.3)
    with pytest.raises(ShapeError, match="one entry a seed"):
        bootstrap(torch.empty(0))


def test_distance_ratio_resamples_pairs():
    # Seeds differ a thousandfold, rivals by a constant factor: only pairing sees that.
    hard = torch.logspace(-3, 0, 50)
    ratio = distance_ratio(0.5 * hard, hard)
    assert ratio.low == pytest.approx(0.5) and ratio.high == pytest.approx(0.5)


class FirstTwo(nn.Module):
    """Two numbers of each image are its features."""

    def forward(self, x):
        return x.flatten(1)[:, :2]


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


def test_rivals_take_turns_at_going_first():
    calls: list[str] = []
    watch = interleave(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1
    )
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in watch.seconds.items()} == dict.fromkeys(
        "abc", 3
    )
    assert rotated(["x", "y"], 5) == ["y", "x"]


def test_ratios_are_taken_within_rounds():
    # The machine slows down threefold; within each round the second rival takes half as long.
    watch = Stopwatch({"a": [1.0, 2.0, 3.0], "b": [0.5, 1.0, 1.5]})
    ratio = watch.ratio("b", "a")
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="'c' has 0 rounds"):
        watch.ratio("c", "a")


def test_interleave_sees_which_rival_is_slower():
    watch = interleave({"quick": lambda: None, "slow": lambda: time.sleep(0.01)}, rounds=3)
    assert watch.ratio("slow", "quick").median > 10
    with pytest.raises(ConfigError, match="rounds=0"):
        interleave({"quick": lambda: None}, rounds=0)


def test_foreign_share_takes_own_work_out():
    before = MachineTimes(busy=10.0, total=100.0, own=1.0)
    after = MachineTimes(busy=16.0, total=110.0, own=3.0)
    assert foreign_share(before, after) == pytest.approx(0.4)
    assert foreign_share(before, before) is None
    assert foreign_share(None, after) is None
    assert Stopwatch(foreign=[None, 0.2, 0.4, 0.3]).foreign_share == pytest.approx(0.3)
    assert Stopwatch(foreign=[None]).foreign_share is None


def test_machine_times_count_this_process():
    before = machine_times()
    if before is None:
        pytest.skip("no /proc/stat on this system")
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    after = machine_times()
    assert after is not None
    assert after.own - before.own >= 0.08
    assert after.total > before.total
