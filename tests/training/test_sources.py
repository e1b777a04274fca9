"""Where the items of a fit come from, and what goes with which config."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from exitkit.errors import ConfigError
from exitkit.sampling.sampler import Sampler
from exitkit.training.batches import Example
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss
from exitkit.training.sources import rollouts_of, stream_of
from exitkit.training.streams import RolloutData
from exitkit.training.tasks import Noise
from tests.training.test_carried import SHAPE, make, rollouts

ALONE = SimpleNamespace(process_index=0, num_processes=1)
SETTINGS = SimpleNamespace(progress=False, seed=0)


def opened(model, data, task=None):
    return stream_of(model, data, task, ExitLoss(config=model.exit_config), SETTINGS, ALONE)


def test_a_sampler_stands_for_its_rollouts():
    model = make("relative")
    sampler = Sampler(DDIMScheduler(), SHAPE, 4, batch_size=2)
    stream = opened(model, sampler)
    assert isinstance(stream, RolloutData) and stream.rollouts.sampler is sampler
    own = rollouts(model)
    assert rollouts_of(model, own, None, ExitLoss(config=model.exit_config)) is own


def test_batches_are_examples_of_the_task():
    model, data = make("relative"), [torch.randn(4, *SHAPE)]
    example = opened(model, data, Noise(DDPMScheduler())).next(0)
    assert isinstance(example, Example) and example.args[0].shape == (4, *SHAPE)
    ready = Example((data[0], torch.ones(4)))
    assert opened(model, [ready]).next(0).args[0] is data[0]


def test_what_the_backbone_does_not_take_is_refused_with_the_first_batch():
    x = torch.randn(4, *SHAPE)
    stream = opened(make("relative"), [(x, x, x, x)], Noise(DDPMScheduler()))
    with pytest.raises(ConfigError, match=r"Net does not take.*conditions=\(\) drops"):
        stream.next(0)


def test_data_and_config_that_do_not_go_together_say_which_do():
    model = make("relative")
    with pytest.raises(ConfigError, match="data is a int, expected a sampler"):
        opened(model, 7)
    with pytest.raises(ConfigError, match="of another model"):
        opened(model, rollouts(make("relative")))
    with pytest.raises(ConfigError, match="need no task, got Noise"):
        opened(model, rollouts(model), Noise(DDPMScheduler()))
    with pytest.raises(ConfigError, match="no target but the full model's own"):
        opened(make("paper"), Sampler(DDIMScheduler(), SHAPE, 3))
    carried = make("carried")
    with pytest.raises(ConfigError, match="are fitted on trajectories, and the data are list"):
        stream_of(carried, [], None, CarriedLoss(), SETTINGS, ALONE)
