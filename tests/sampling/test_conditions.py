"""Conditions: each seed its own entry of the pools, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError, ShapeError
from exitkit.sampling.sampler import Sampler
from tests.sampling.helpers import SHAPE, Conv, draw


def test_conditioning_follows_its_rows_through_batches():
    shift = torch.linspace(-1, 1, 5)
    given = {"shift": shift, "extra": {"deep": [torch.arange(5), "word"], "scalar": torch.ones(())}}
    net = Conv()
    together = draw(net, "ddim", SHAPE, steps=2, seeds=5, conditions=given, batch_size=2)
    rows = [extra["deep"][0].tolist() for _, _, _, extra, _ in net.seen[::2]]
    assert rows == [[0, 1], [2, 3], [4]]
    assert net.seen[0][3]["deep"][1] == "word" and net.seen[0][3]["scalar"].shape == ()
    for i in range(5):
        alone = draw(Conv(), "ddim", SHAPE, steps=2, seeds=[i], conditions={"shift": shift})
        torch.testing.assert_close(alone.samples[0], together.samples[i], rtol=1e-4, atol=1e-5)
    made = draw(
        Conv(),
        "ddim",
        SHAPE,
        steps=2,
        seeds=5,
        batch_size=2,
        conditions=lambda r: {"shift": shift[r]},
    )
    assert torch.equal(made.samples, together.samples)


def test_a_seed_gets_its_entry_of_the_pools_wherever_it_stands():
    shift = torch.tensor([-1.0, 0.0, 1.0])
    net = Conv()
    draw(net, "ddim", SHAPE, steps=1, seeds=[10_001, 4, 3], conditions={"shift": shift})
    assert net.seen[0][2].tolist() == [1.0, 0.0, -1.0]  # 10,001, 4 and 3 modulo 3


def test_a_function_gets_the_seeds_once_a_batch_and_branch():
    asked = []

    def conditions(seeds):
        asked.append((seeds.tolist(), seeds.dtype, seeds.device.type))
        return {"shift": seeds.float() / 10}

    net = Conv()
    draw(
        net, "ddim", SHAPE, steps=3, seeds=[5, 2, 9], batch_size=2, conditions=conditions,
        negative_conditions=lambda seeds: {}, guidance_scale=2.0,
    )  # fmt: skip
    assert asked == [([5, 2], torch.int64, "cpu"), ([9], torch.int64, "cpu")]
    torch.testing.assert_close(net.seen[0][2], torch.tensor([0.5, 0.2]))


def test_pools_of_different_lengths_are_refused_by_name():
    pools = {"shift": torch.zeros(3), "extra": {"deep": [torch.zeros(2)]}}
    named = r"conditions\['shift'\] 3, conditions\['extra'\]\['deep'\]\[0\] 2"
    with pytest.raises(ShapeError, match=named):
        Sampler("ddim", SHAPE, conditions=pools)
    with pytest.raises(ShapeError, match="hold no entry"):
        Sampler("ddim", SHAPE, conditions={"shift": torch.zeros(0)})
    with pytest.raises(ConfigError, match="must return a mapping of keyword arguments"):
        draw(Conv(), "ddim", SHAPE, steps=1, conditions=lambda seeds: [seeds])
