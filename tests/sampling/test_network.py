"""Networks in the loop: how they are called, what they predict, where they compute."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit import unwrap, wrap
from exitkit.errors import ConfigError
from exitkit.policies import NeverExit
from exitkit.sampling.network import name_of, placement, planned
from tests.backbones import TokenNet, perturb
from tests.sampling.helpers import SHAPE, Conv, draw


@dataclass
class Output:
    sample: Tensor


@dataclass
class Unusual:
    note: str
    velocity: Tensor


@pytest.mark.parametrize(
    "wrapping",
    [
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: Output(x),
        lambda x: {"note": 1, "other": -x, "sample": x},
        lambda x: {"note": 1, "out": x},
        lambda x: Unusual("a", x),
        lambda x: torch.cat([x, torch.full_like(x, 9.0)], dim=1),
    ],
    ids=["tuple", "list", "sample", "mapping", "mapping_first", "dataclass", "variance"],
)
def test_every_kind_of_output_gives_the_same_image(wrapping):
    plain = draw(Conv(), "ddim", SHAPE, steps=3, seeds=2)
    other = draw(Conv(wrapping), "ddim", SHAPE, steps=3, seeds=2)
    assert torch.equal(plain.samples, other.samples)


class Swapped(TokenNet):
    """Takes its timestep first, and the noisy input by another name."""

    def forward(self, timestep: Tensor, latents: Tensor):
        return super().forward(latents, timestep)


@pytest.fixture(scope="module")
def example():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [5, 700]
    )


def test_arguments_go_by_name_where_they_do_not_come_first(example):
    x, t = example
    net = perturb(Swapped(depth=3).eval())
    model = wrap(net, "relative", example_inputs=(t, x))
    model.policy = NeverExit()
    assert (model.plan.noisy, model.plan.timestep) == ("latents", "timestep")
    ours = draw(model, "ddim", SHAPE, steps=3, seeds=2)

    def swap(x, t):
        return net(t, x)

    unwrap(model)
    assert torch.equal(ours.samples, draw(swap, "ddim", SHAPE, steps=3, seeds=2).samples)


def test_placement_is_that_of_the_first_floating_parameter():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
            self.inner = nn.Linear(1, 1, device="meta", dtype=torch.bfloat16)

    assert placement(Mixed()) == (torch.device("meta"), torch.bfloat16)
    for bare in (lambda x, t: x, nn.Identity()):
        assert placement(bare) == (torch.device("cpu"), torch.float32)


def test_a_bare_backbone_is_put_into_form_only_where_it_must_be(example):
    usual, swapped = (kind(depth=3).eval() for kind in (TokenNet, Swapped))
    x, t = example
    model = wrap(usual, "relative", example_inputs=(x, t))
    other = wrap(swapped, "relative", example_inputs=(t, x))
    assert planned(usual, model) is usual
    put = planned(swapped, other)
    assert put is not swapped and name_of(other) == "Swapped"
    with torch.no_grad():
        assert torch.equal(put(x, t), swapped(t, x))
        assert not torch.allclose(put(x, t), put(x, t + 100), atol=1e-4)


def test_a_timestep_that_was_not_found_is_told_where_it_is_missed() -> None:
    class Timed(nn.Module):
        """Its timestep has a name that nobody knows, and could be labels."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 4)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

        def forward(self, img: Tensor, sigma_t: Tensor) -> Tensor:
            h = img + self.table(sigma_t)[:, None]
            for block in self.blocks:
                h = h + block(h)
            return h

    example = (torch.randn(2, 6, 4), torch.tensor([3, 900]))
    with pytest.warns(ek.errors.DoubtWarning, match="sigma_t"):
        model = ek.wrap(Timed().eval(), "relative", example_inputs=example)
    wanted = r"needs 'sigma_t'.*No timestep was found.*timestep='sigma_t'\)"
    with pytest.raises(ConfigError, match=wanted):
        ek.generate(model, ek.Sampler("ddim", (6, 4), 2), seeds=1)
    ek.unwrap(model)
    adapter = ek.Adapter("mine", lambda _: True, timestep="sigma_t")
    named = ek.wrap(Timed().eval(), "relative", example_inputs=example, adapter=adapter)
    ek.generate(named, ek.Sampler("ddim", (6, 4), 2), seeds=1)  # the control
