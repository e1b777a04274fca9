"""What is asked of risk control: its arguments, and how many samples would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exitkit.calibration.risk_target import RiskTarget
from exitkit.errors import ConfigError
from tests.calibration import models


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
def test_how_many_would_do(method: Any) -> None:
    risk = RiskTarget(0.1, method)
    steady = torch.full((50,), 0.05, dtype=torch.float64)
    enough = risk.enough(steady)
    assert enough is not None
    assert risk.chosen(steady[:1].expand(1, enough)) == 0
    assert risk.chosen(steady[:1].expand(1, enough - 1)) is None
    assert risk.enough(torch.full((50,), 0.1, dtype=torch.float64)) is None
    fewer = risk.enough(torch.zeros(50, dtype=torch.float64))
    assert fewer is not None and fewer < enough


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
def test_a_statistic_within_the_limit_is_what_certifies(method: Any) -> None:
    risk = RiskTarget(0.2, method, loss_bound=2.0)
    losses = 0.6 * torch.rand(4, 300, generator=torch.Generator().manual_seed(0)).cumsum(0)
    statistics = risk.statistics(losses.clamp(max=2.0))
    passed = [statistic <= risk.limit for statistic in statistics]
    chosen = risk.chosen(losses.clamp(max=2.0))
    assert not all(passed)
    assert chosen == (passed.index(False) - 1 if passed[0] else None)
    assert risk.limit == (0.1 if method == "ltt" else 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 0.0}, "max_error must be a number above 0, got 0.0"),
        ({"value": "low"}, "got 'low'"),
        ({"method": "lt"}, "no method 'lt' .known: ltt, crc, ucb.*Did you mean 'ltt'"),
        ({"delta": 1.0}, "delta must lie between 0 and 1, got 1.0"),
        ({"delta": "low"}, "got 'low'"),
        ({"loss_bound": 0.1}, "loss_bound must be a number above value=0.1, got 0.1"),
        ({"loss_bound": float("inf")}, "got inf"),
        ({"seeds": 0}, "names no sample"),
        ({"seeds": 2.5}, "got 2.5"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RiskTarget(**{"value": 0.1, **options})


def test_the_calibration_split_fits_the_tuning_split() -> None:
    images = [torch.zeros(2, 1)]
    RiskTarget(0.1).check_on(models.SAMPLER)
    RiskTarget(0.1, on=images).check_on([torch.ones(2, 1)])
    for risk, on, message in (
        (RiskTarget(0.1, on=images), models.SAMPLER, "holds images of a classifier"),
        (RiskTarget(0.1), images, "images that the tuning split has not seen"),
        (RiskTarget(0.1, on=images), images, "images that the tuning split has not seen"),
    ):
        with pytest.raises(ConfigError, match=message):
            risk.check_on(on)
