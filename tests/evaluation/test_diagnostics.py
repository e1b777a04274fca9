"""Errors of single exits and depths along the trajectory."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from exitkit.errors import ConfigError
from exitkit.evaluation.diagnostics import (
    batches_of,
    depth_map,
    error_by_layer,
    uncertainty_maps,
)
from exitkit.policies import ScriptedExit
from exitkit.sampling.sampler import Sampler
from tests.tiny_suites import SHAPE, wrapped


def sampler(batch_size=64):
    return Sampler(DDIMScheduler(clip_sample=False), SHAPE, 4, batch_size=batch_size)


def test_errors_do_not_depend_on_the_size_of_batches():
    model = wrapped("relative")
    whole = error_by_layer(model, sampler(), range(5))
    parts = error_by_layer(model, sampler(batch_size=2), range(5))
    assert whole.error.shape == (4, len(model.exits)) and whole.seeds == parts.seeds == 5
    torch.testing.assert_close(parts.error, whole.error, rtol=1e-4, atol=1e-6)
    assert parts.timesteps == whole.timesteps
    # Negative control: other seeds have other errors.
    other = error_by_layer(model, sampler(), range(5, 10))
    assert not torch.allclose(other.error, whole.error)


def test_parts_hold_every_seed_once():
    assert [list(part) for part in batches_of(sampler(2), range(5))] == [[0, 1], [2, 3], [4]]


def test_an_exit_that_is_not_there_has_no_maps():
    model = wrapped("relative")
    with pytest.raises(ConfigError, match=f"exit=99, the model has exits 1..{len(model.exits)}"):
        uncertainty_maps(model, sampler(), exit=99)


def test_depths_are_told_as_shares_of_the_blocks():
    model = wrapped("relative")
    model.policy = ScriptedExit((1, len(model.exits) + 1))
    trace = sampler().run(model, (0, 1)).trace
    found = depth_map(trace)
    assert found.share.shape == (4, 2) and len(found.timesteps) == 4
    torch.testing.assert_close(found.share[:, 0], torch.full((4,), 1 / 6))
    assert found.share[:, 1].eq(1).all()
