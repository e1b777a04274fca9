"""Generation by seeds: samples do not depend on batch mates; wrapped models beside bare ones."""

from __future__ import annotations

import pytest
import torch

from exitkit import unwrap, wrap
from exitkit.errors import ConfigError
from exitkit.policies import FULL, FixedExit, NeverExit, ScriptedExit, StepSchedule
from exitkit.sampling.generate import generate
from tests.backbones import TokenNet, perturb
from tests.sampling.helpers import SCHEDULERS, SHAPE, Conv, draw


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    together = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[8, 3, 5])
    alone = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[3])
    torch.testing.assert_close(together.samples[1:2], alone.samples, rtol=1e-4, atol=1e-5)
    split = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[5, 8, 3], batch_size=2)
    torch.testing.assert_close(split.samples[[1, 2, 0]], together.samples, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together.samples[0], together.samples[1], atol=1e-3)


def test_generate_wants_a_sampler():
    with pytest.raises(ConfigError, match=r"expected a sampler, got str\..*ek\.Sampler"):
        generate(Conv(), "ddim")


def test_plain_functions_and_progress(capsys, monkeypatch):
    images = draw(lambda x, t: 0.1 * x, "ddim", SHAPE, steps=2, progress=True).samples
    assert images.shape == (1, *SHAPE)
    assert capsys.readouterr().err == "", "no bar for what takes less than two seconds"
    monkeypatch.setattr("exitkit.sampling.sampler.DELAY", 0.0)
    draw(lambda x, t: 0.1 * x, "ddim", SHAPE, steps=2, progress=True)
    assert "2/2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def example():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [5, 700]
    )


@pytest.fixture
def model(example):
    wrapped = wrap(perturb(TokenNet(depth=3).eval()), "relative", example_inputs=example)
    wrapped.policy = NeverExit()
    return wrapped


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
def test_a_wrapped_model_that_never_exits_equals_the_bare_one(model, name):
    ours = draw(model, SCHEDULERS[name], SHAPE, steps=4, seeds=3, batch_size=2)
    bare = draw(unwrap(model), SCHEDULERS[name], SHAPE, steps=4, seeds=3, batch_size=2)
    assert torch.equal(ours.samples, bare.samples)
    assert ours.trace.cost == 1.0 and bare.trace is None


def test_the_trace_covers_all_samples_and_steps(model):
    model.policy = StepSchedule((FULL, 1, 2, FULL))
    sample = draw(model, "ddim", SHAPE, steps=4, seeds=5, batch_size=2)
    assert len(model.exits) == sample.trace.exits == 2
    assert sample.trace.depth.tolist() == [[3] * 5, [1] * 5, [2] * 5, [3] * 5]
    assert sample.trace.timesteps.tolist() == [750, 500, 250, 0]
    assert 0 < sample.trace.cost < 1


def test_rows_of_their_own_depth_do_not_depend_on_batch_mates(model):
    model.policy = ScriptedExit((1, 2, FULL))
    together = draw(model, "ddpm", SHAPE, steps=4, seeds=[4, 5, 6])
    for i, depth in enumerate((1, 2, FULL)):
        model.policy = FixedExit(depth)
        alone = draw(model, "ddpm", SHAPE, steps=4, seeds=[4 + i])
        torch.testing.assert_close(alone.samples[0], together.samples[i], rtol=1e-4, atol=1e-5)


def test_the_trajectory_is_closed_after_an_error(model):
    with pytest.raises(ConfigError, match="StepSchedule holds 2 steps"):
        model.policy = StepSchedule((1, 1))
        draw(model, "ddim", SHAPE, steps=4)
    model.policy = NeverExit()
    assert draw(model, "ddim", SHAPE, steps=2).trace.cost == 1.0
