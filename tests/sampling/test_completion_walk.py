"""Samplers that show no steps of a scheduler have nothing to solve a completion on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.sampling.completion_walk import judging
from exitkit.sampling.sampler import SamplerBase
from tests.training.test_completion import sampler, wrapped


class Constant(SamplerBase):
    """Draws one number."""

    steps, batch_size = 4, 2

    def run_batch(self, model: Any, seeds: Any, edit: Any, record: Any, tick: Any) -> torch.Tensor:
        return torch.zeros(len(seeds), 1, 8, 8)

    def with_steps(self, steps: int) -> Any:
        return self

    def describe(self) -> dict[str, Any]:
        return {"constant": 0}


def test_a_sampler_without_steps_is_refused_by_name() -> None:
    _, model = wrapped()
    with pytest.raises(ConfigError, match="steps of a scheduler, which Constant does not show"):
        ek.fit(model, Constant(), progress=False)
    with pytest.raises(ConfigError, match="which Constant does not show"):
        Constant().aimed(model, torch.tensor([1]))
    with torch.no_grad(), model.suspended():  # the control
        assert sampler().completion_walk(model, (1, 2), False).steps == sampler().steps


def test_every_fourth_trajectory_judges() -> None:
    assert judging(8).tolist() == [False] * 6 + [True] * 2
    assert judging(3).tolist() == [True] * 3
