"""The sampling loop against loops written by hand with diffusers: guidance, precision, refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from exitkit import wrap
from exitkit.errors import NonFiniteError, ShapeError
from exitkit.policies import FULL, StepSchedule
from tests.backbones import TokenNet, perturb
from tests.sampling.helpers import SCHEDULERS, SHAPE, Conv, by_hand, draw


@pytest.mark.parametrize("name", SCHEDULERS)
def test_generation_equals_the_loop_by_hand(name):
    sample = draw(Conv(), SCHEDULERS[name], SHAPE, steps=7, seeds=[5])
    assert sample.samples.shape == (1, *SHAPE) and sample.samples.dtype == torch.float32
    assert sample.trace is None and sample.seconds > 0 and sample.seeds == (5,)
    by_loop = by_hand(Conv(), SCHEDULERS[name], 7, 5)
    # The loop of the SDE computes its coefficients in double precision.
    close = {"rtol": 1e-3, "atol": 1e-3} if name == "sde" else {}
    torch.testing.assert_close(sample.samples, by_loop, **close)


def test_a_nan_is_refused_with_step_timestep_and_seed():
    net = Conv()

    def spoil(x):
        if len(net.seen) == 3:
            x[1] = float("nan")
        return x

    net.wrapping = spoil
    with pytest.raises(NonFiniteError, match=r"Conv .* step 2 of 5, timestep 400, for seeds \[4\]"):
        draw(net, "ddim", SHAPE, steps=5, seeds=range(3, 6))


def test_a_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match=r"shape \(2, 3, 2, 2\) for noisy inputs of shape \(2, 3"):
        draw(Conv(lambda x: x[..., :2, :2]), "ddim", SHAPE, steps=2, seeds=2)
    with pytest.raises(ShapeError, match="returned str, in which no prediction"):
        draw(Conv(lambda x: "x"), "ddim", SHAPE, steps=2)
    with pytest.raises(ShapeError, match="returned tuple"):
        draw(Conv(lambda x: ()), "ddim", SHAPE, steps=2)


def test_guidance_mixes_both_branches():
    cond, neg = {"shift": torch.tensor([0.5, 0.2])}, {"shift": torch.tensor([-0.5, 0.0])}

    def run(**options):
        return draw(Conv(), "ddim", SHAPE, steps=3, seeds=2, **options).samples

    one = run(conditions=cond, negative_conditions=neg, guidance_scale=1.0)
    torch.testing.assert_close(one, run(conditions=cond))
    torch.testing.assert_close(
        run(conditions=cond, negative_conditions=neg, guidance_scale=0.0), run(conditions=neg)
    )

    class Guided(Conv):
        def forward(self, x, t):
            a, b = (Conv.forward(self, x, t, c["shift"]) for c in (cond, neg))
            return b + 3.5 * (a - b)

    guided = run(conditions=cond, negative_conditions=neg, guidance_scale=3.5)
    torch.testing.assert_close(guided, draw(Guided(), "ddim", SHAPE, steps=3, seeds=2).samples)
    assert not torch.allclose(guided, one, atol=1e-2)
    net = Conv()
    draw(net, "ddim", SHAPE, steps=3, conditions={}, negative_conditions={}, guidance_scale=2.0)
    assert [int(t[0]) for _, t, *_ in net.seen] == [666, 666, 333, 333, 0, 0]


def test_guidance_leaves_a_learned_variance_alone():
    def wrapping(x):
        return torch.cat([x, x.mean() + torch.zeros_like(x)], dim=1)

    cond, neg = {"shift": torch.tensor([0.9])}, {"shift": torch.tensor([-0.9])}
    scheduler = DDPMScheduler(variance_type="learned_range")

    class Guided(Conv):
        def forward(self, x, t):
            a, b = (Conv.forward(self, x, t, c["shift"]) for c in (cond, neg))
            return torch.cat([(b + 2 * (a - b))[:, :3], a[:, 3:]], dim=1)

    by_generate = draw(
        Conv(wrapping), scheduler, SHAPE, steps=4, conditions=cond, negative_conditions=neg,
        guidance_scale=2.0,
    )  # fmt: skip
    torch.testing.assert_close(by_generate.samples, by_hand(Guided(wrapping), scheduler, 4, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_is_fed_its_own_dtype_and_the_sampler_stays_exact(dtype):
    net = Conv().to(dtype)
    images = draw(net, "ddim", SHAPE, steps=4).samples
    assert {x.dtype for x, *_ in net.seen} == {dtype}
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert images.dtype == exact
    reference = draw(Conv(), "ddim", SHAPE, steps=4).samples
    close = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(images.float(), reference, rtol=close, atol=close)


@pytest.fixture(scope="module")
def example():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [5, 700]
    )


def test_guidance_and_second_order_samplers_count_steps_once(example):
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor):
            return super().forward(x + label[:, None, None, None], t)

    x, t = example
    net = wrap(
        perturb(Labelled(depth=3).eval()),
        "relative",
        example_inputs=(x, t, torch.tensor([0.1, 0.3])),
    )
    net.policy = StepSchedule((FULL, 1, FULL))
    label = {"label": torch.tensor([0.5, 0.1])}
    options = {"steps": 3, "seeds": 2, "conditions": label}
    guided = draw(
        net,
        "ddim",
        SHAPE,
        **options,
        guidance_scale=2.0,
        negative_conditions={"label": torch.zeros(2)},
    )
    full = len(net.exits) + 1
    assert guided.trace.depth[:, 0].tolist() == [full, full, 1, 1, full, full]
    assert StepSchedule.from_trace(guided.trace) == net.policy
    heun = draw(net, HeunDiscreteScheduler(), SHAPE, **options)
    assert heun.trace.depth[:, 0].tolist() == [full, 1, 1, full, full]
