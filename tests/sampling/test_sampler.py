"""Samplers: what they refuse, what they leave as it was, what they say of themselves."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from exitkit.errors import ConfigError, NonFiniteError
from exitkit.sampling.sampler import Sampler
from tests.sampling.helpers import SHAPE, Conv, draw


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be a whole number of at least 1, got -1"),
        ({"steps": 0}, "got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"shape": ()}, "shape must hold the sizes of one sample"),
        ({"shape": (3, 0, 4)}, "shape must hold"),
        ({"shape": (3, 4.0, 4)}, "shape must hold"),
        ({"guidance_scale": 2.0}, "guidance_scale and negative_conditions belong together"),
        ({"negative_conditions": {}}, "belong together"),
        ({"conditions": [1]}, "conditions must be a mapping of tensors"),
        ({"scheduler": "dimm"}, "no sampler"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"scheduler": "ddim", "shape": SHAPE, **options}
    with pytest.raises(ConfigError, match=message):
        draw(Conv(), arguments.pop("scheduler"), arguments.pop("shape"), **arguments)


def test_training_flags_come_back_one_by_one():
    net = Conv()
    net.extra_module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    net.train()
    net.extra_module[1].eval()
    flags = [m.training for m in net.modules()]
    assert True in flags and False in flags
    draw(net, "ddim", SHAPE, steps=2)
    assert not any(training for *_, training in net.seen)
    assert [m.training for m in net.modules()] == flags
    net.wrapping = lambda x: x * float("nan")
    with pytest.raises(NonFiniteError):
        draw(net, "ddim", SHAPE, steps=2)
    assert [m.training for m in net.modules()] == flags


def test_no_gradients_are_kept_and_the_global_generator_is_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = draw(Conv(), "ddpm", SHAPE, steps=3).samples
    assert not images.requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_more_steps_change_nothing_else():
    sampler = Sampler("ddim", SHAPE, 4, batch_size=2)
    assert sampler.with_steps(9) == Sampler("ddim", SHAPE, 9, batch_size=2)
    assert sampler.steps == 4


def test_a_description_survives_json_and_tells_samplers_apart():
    scheduler = DDIMScheduler(beta_end=0.01)
    sampler = Sampler(scheduler, SHAPE, 4, conditions={"shift": torch.zeros(3)})
    described = sampler.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["scheduler"]["class"] == "DDIMScheduler"
    assert described["scheduler"]["beta_end"] == 0.01 and described["conditions"] == ["shift"]
    assert Sampler(DDIMScheduler(), SHAPE, 4).describe() != Sampler(scheduler, SHAPE, 4).describe()
    # The size of batches decides how fast, not what.
    assert (
        Sampler("ddim", SHAPE, 4, batch_size=2).describe() == Sampler("ddim", SHAPE, 4).describe()
    )
