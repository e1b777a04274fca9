"""What adapters declare: with its range of the timestep, another clock is the same backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exitkit import wrap
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.policies import StepSchedule, TimestepSchedule, UncertaintyThreshold
from exitkit.surgery.adapter import Adapter
from tests.backbones import TokenNet, perturb

SHAPE = (3, 4, 4)
USUAL = torch.tensor([900.0, 700.0, 450.0, 120.0])


class OtherClock(nn.Module):
    """The same network, told the time on a scale of its own."""

    def __init__(self, inner: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.inner, self.low, self.high = inner, low, high

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        usual = (t - self.low) / (self.high - self.low) * 1000
        result: Tensor = self.inner(x, usual)
        return result


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return perturb(TokenNet(depth=4, dim=16).eval())


def wrapped(ends: tuple[float, float] | None, declared: bool, preset: str) -> ExitModel:
    net, adapter, t = backbone(), None, torch.tensor([900.0, 120.0])
    if ends is not None:
        low, high = ends
        net, t = OtherClock(net, low, high), low + t / 1000 * (high - low)
        if declared:
            adapter = Adapter(name="clock", matches=lambda m: True, timestep_range=ends)
    torch.manual_seed(1)
    model = wrap(net, preset, example_inputs=(torch.randn(2, *SHAPE), t), adapter=adapter)
    assert isinstance(model, ExitModel)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=source))
    model.heads.mark_fitted()
    return model


def walked(model: ExitModel, ends: tuple[float, float] | None) -> tuple[list[Tensor], list[float]]:
    """Outputs of four steps in a trajectory, and the timesteps that the trace holds."""
    low, high = ends or (0.0, 1000.0)
    outputs, times = [], []
    with model.trajectory(), torch.no_grad():
        for i, usual in enumerate(USUAL):
            x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(i))
            outputs.append(model(x, (low + usual / 1000 * (high - low)).expand(2)))
            times.append(float(model.trace.timesteps[-1]))
    return outputs, times


RANGES = [(-1.2, 1.6), (1.0, 0.0), (0.002, 80.0)]


USES = [
    ("carried", StepSchedule((1_000_000, 1, 1, 1)), False),
    ("relative", UncertaintyThreshold(0.97), True),
    ("relative", TimestepSchedule(edges=(500.0,), per_bin=(1, 3)), True),
]


@pytest.mark.parametrize(
    ("ends", "preset", "policy", "timed"),
    [  # each range and each use always, all pairs with the slow tests
        pytest.param(ends, *use, marks=[pytest.mark.slow] * (i != j))
        for i, ends in enumerate(RANGES)
        for j, use in enumerate(USES)
    ],
)
def test_another_clock_changes_nothing(ends, preset, policy, timed):
    plain, other = wrapped(None, False, preset), wrapped(ends, True, preset)
    plain.policy = other.policy = policy
    want, at = walked(plain, None)
    got, times = walked(other, ends)
    assert times == pytest.approx(at, rel=1e-4, abs=0.01) and at == USUAL.tolist()
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    # Negative control: undeclared, this clock is read as the usual one, and rows leave elsewhere.
    undeclared = wrapped(ends, False, preset)
    undeclared.policy = policy
    outputs, misread = walked(undeclared, ends)
    assert misread != pytest.approx(at, rel=0.05)
    apart = max(float((a - b).abs().max()) for a, b in zip(want, outputs, strict=True))
    assert apart > 0.1 or not timed  # a plan by steps and carried outputs ask no time


def test_a_range_needs_two_different_numbers():
    for ends in [(1.0, 1.0), (0.0, float("nan"))]:
        with pytest.raises(ConfigError, match="timestep_range=.* is no range"):
            Adapter(name="clock", matches="a.B", timestep_range=ends)


def test_a_batch_axis_of_no_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="batched=False and batch_axis=1"):
        Adapter("both", "a.B", batch_axis=1, batched=False)
