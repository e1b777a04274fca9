"""Weights of guidance, read off predictions, against the formula that mixed them."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.pipelines.guided_mix import GuidedMix

CONDITIONAL, NEGATIVE, OTHER = torch.randn(
    3, 5, 4, 6, 6, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize("scale", [1.0, 4.5, torch.linspace(1, 7, 5).view(-1, 1, 1, 1)])
def test_classifier_free_guidance(scale: object) -> None:
    mixed = NEGATIVE + scale * (CONDITIONAL - NEGATIVE)
    mix = GuidedMix([NEGATIVE, CONDITIONAL], mixed, "Pipe")
    for parts in ((NEGATIVE, CONDITIONAL), (OTHER, NEGATIVE)):
        wanted = parts[0] + scale * (parts[1] - parts[0])
        torch.testing.assert_close(mix.of(parts), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(mix.of([OTHER * 0 + 1] * 2).round(decimals=4), torch.ones_like(OTHER))


def test_three_branches_and_branches_that_agree() -> None:
    mixed = NEGATIVE + 7 * (CONDITIONAL - OTHER) + 1.5 * (OTHER - NEGATIVE)
    parts = [NEGATIVE, OTHER, CONDITIONAL]
    torch.testing.assert_close(
        GuidedMix(parts, mixed, "Pipe").of(parts), mixed, rtol=1e-4, atol=1e-4
    )
    same = GuidedMix([NEGATIVE, NEGATIVE], NEGATIVE, "Pipe")
    torch.testing.assert_close(same.of([OTHER, OTHER]), OTHER)
    assert torch.equal(GuidedMix([OTHER], OTHER, "Pipe").of([NEGATIVE]), NEGATIVE)


@pytest.mark.parametrize("change", [lambda m: -m, lambda m: m / m.std() * 3, lambda m: m.tanh()])
def test_other_mixtures_are_refused(change: object) -> None:
    mixed = NEGATIVE + 4 * (CONDITIONAL - NEGATIVE)
    with pytest.raises(ConfigError, match="Pipe hands to its scheduler is no weighted mean"):
        GuidedMix([NEGATIVE, CONDITIONAL], change(mixed), "Pipe")  # type: ignore[operator]
