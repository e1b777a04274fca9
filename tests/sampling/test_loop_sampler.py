"""Loops of one's own: called with the model, seeds and steps of a batch, whatever they do."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.solvers import draw_noise, seeded
from tests.training.test_carried import SHAPE, make


def euler(model, seeds, steps):
    """Steps of equal length against what the model says."""
    x = draw_noise(SHAPE, seeded(seeds.tolist()))
    for step in range(steps, 0, -1):
        t = torch.full((len(x),), 1000.0 * step / steps)
        x = x - model(x, t) / steps
    return x


def test_batches_are_those_of_the_loop_by_hand():
    model, asked = make("relative"), []
    bare = model.backbone

    def loop(network, seeds, steps):
        asked.append((seeds.tolist(), seeds.dtype, steps))
        return euler(network, seeds, steps)

    sample = LoopSampler(loop, steps=3, batch_size=2).run(model, [7, 1, 4])
    assert asked == [([7, 1], torch.int64, 3), ([4], torch.int64, 3)]
    with torch.no_grad():
        alone = [euler(bare, torch.tensor([seed]), 3) for seed in (7, 1, 4)]
    torch.testing.assert_close(sample.samples, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert sample.seeds == (7, 1, 4) and sample.decoded is None


def test_steps_of_a_schedule_are_those_of_the_loop():
    model = make("relative")
    model.policy = ek.policies.StepSchedule((ek.policies.FULL, 1, ek.policies.FULL))
    full = len(model.exits) + 1
    sample = LoopSampler(euler, steps=3).run(model, [0, 1])
    assert sample.trace.depth.tolist() == [[full] * 2, [1] * 2, [full] * 2]


def test_another_number_of_steps_is_another_loop():
    sampler = LoopSampler(euler, 5, batch_size=3)
    assert sampler.with_steps(8) == LoopSampler(euler, 8, batch_size=3)
    assert sampler.describe() == {"function": "euler", "steps": 5}
    assert sampler.describe() != sampler.with_steps(8).describe()


def test_predictions_of_a_loop_cannot_be_edited():
    with pytest.raises(ConfigError, match="cannot be edited.*ek.Sampler"):
        LoopSampler(euler, 2).run(make("relative"), [0], edit=lambda step, seeds, given: given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("ddim",), r"expected a function of \(model, seeds, steps\), got str"),
        ((euler, 0), "steps must be a whole number of at least 1, got 0"),
        ((euler, True), "steps must be"),
        ((euler, 5, 1.5), "batch_size must be"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        LoopSampler(*given)
