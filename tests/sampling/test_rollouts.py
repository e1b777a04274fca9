"""Rollouts: the bare model's own trajectories, kept by batch and branch, and the calls they give."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import exitkit as ek
from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.rollouts import STAY, Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.solvers import draw_noise, seeded
from exitkit.training.fit import fit
from tests.training.test_carried import SHAPE, Net, make, rollouts

SCHEDULERS = {
    "ddim": DDIMScheduler(),
    "ddpm": DDPMScheduler(),
    "dpm": DPMSolverMultistepScheduler(),
    "euler": EulerDiscreteScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_rollout_is_the_bare_models_own_trajectory(name):
    """Against a sampling loop of the bare backbone from the same noise, each seed with its own."""
    scheduler = SCHEDULERS[name]
    model = make()
    rollout = rollouts(model, scheduler, seeds=[3, 8, 1, 9])[0]
    bare, loop = model.backbone, copy.deepcopy(scheduler)
    loop.set_timesteps(8)
    numbers = seeded([3, 8, 1, 9])
    x = draw_noise(SHAPE, numbers) * getattr(loop, "init_noise_sigma", 1.0)
    extra = {"generator": numbers} if name in ("ddim", "ddpm", "dpm", "euler") else {}
    with torch.no_grad():
        for i, t in enumerate(loop.timesteps):
            given = loop.scale_model_input(x, t) if hasattr(loop, "scale_model_input") else x
            y = bare(given, t.expand(4))
            torch.testing.assert_close(rollout.x[i], given, rtol=0, atol=0)
            torch.testing.assert_close(rollout.prediction[i], y, rtol=0, atol=0)
            x = loop.step(y, t, x, **extra).prev_sample
    assert torch.equal(rollout.timesteps[:, 0], loop.timesteps)
    assert rollout.steps == 8 and rollout.rows == 4
    assert not hasattr(scheduler, "num_inference_steps") or scheduler.num_inference_steps is None


def test_what_is_recorded_is_what_is_generated():
    """One loop: the inputs that heads are fitted on are those that a run without exits meets."""
    model, seen = make(), []
    model.policy = ek.policies.NeverExit()
    sampler = Sampler(DDIMScheduler(), SHAPE, 8)
    model.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    sample = ek.generate(model, sampler, seeds=[5, 6])
    generated = torch.stack(seen)
    rollout = Rollouts(model, sampler, [5, 6])[0]
    assert torch.equal(rollout.x, generated)
    assert sample.trace.cost == pytest.approx(1.0)


def test_rollouts_are_functions_of_their_seeds():
    model = make()
    source = rollouts(model, DDPMScheduler())
    again = rollouts(model, DDPMScheduler(), seeds=range(4, 8))
    assert len(source) == 2
    assert torch.equal(source[1].x, again[0].x)
    assert not torch.equal(source[0].x, source[1].x)
    assert torch.equal(source[-1].x, source[1].x) and len(list(source)) == 2
    assert [r.x.shape for r in source[:1]] == [source[0].x.shape] and source[1:][0] is source[1]
    with pytest.raises(IndexError, match="rollout 2 of 2"):
        source[2]


def test_policy_and_flags_do_not_matter():
    """The full model runs, whatever the policy; train flags come back."""
    model = make()
    want = rollouts(model)[0]
    model.policy = ek.policies.FixedExit(1)
    model.train()
    model.backbone.blocks[2].eval()
    flags = [m.training for m in model.modules()]
    got = rollouts(model)[0]
    assert torch.equal(got.prediction, want.prediction)
    assert [m.training for m in model.modules()] == flags


def test_keeping_and_staying(monkeypatch):
    model, made = make(), []
    source = rollouts(model, seeds=12, keep=2)
    run = source.run
    source.run = lambda i: made.append(i) or run(i)
    order = [source.at_step(n * STAY // 2) for n in range(8)]
    assert made == [0, 1, 2, 0]
    assert all(order[n] is order[n + 1] for n in (0, 2, 4, 6))
    assert torch.equal(order[0].x, order[6].x)
    few = rollouts(model)
    assert few.at_step(0) is few[0] and few.at_step(1) is few[1]


def test_guidance_gives_a_rollout_for_each_branch():
    model, scheduler = make(labels=True), DDIMScheduler()
    source = rollouts(
        model,
        scheduler,
        conditions={"labels": torch.tensor([2])},
        negative_conditions={"labels": torch.tensor([0])},
        guidance_scale=3.0,
    )
    assert len(source) == 4 and source.branches == 2
    positive, negative = source[:2]
    assert torch.equal(positive.x, negative.x)
    scheduler.set_timesteps(8)
    mixed = negative.prediction[3] + 3.0 * (positive.prediction[3] - negative.prediction[3])
    following = scheduler.step(mixed, scheduler.timesteps[3], positive.x[3]).prev_sample
    torch.testing.assert_close(positive.x[4], following)
    one = torch.tensor([1])
    assert positive.at(one, one).kwargs["labels"].tolist() == [2]
    assert negative.at(one, one).kwargs["labels"].tolist() == [0]


def test_a_loop_of_ones_own_is_recorded_by_its_timesteps():
    """Two calls a step, told apart without a word from the loop."""
    model, scheduler = make(labels=True), DDIMScheduler()

    def loop(network, seeds, steps):
        own = copy.deepcopy(scheduler)
        own.set_timesteps(steps)
        x = draw_noise(SHAPE, seeded(seeds.tolist()))
        for t in own.timesteps:
            a, b = (network(x, t.expand(len(x)), torch.full((len(x),), c)) for c in (2, 0))
            x = own.step(b + 3.0 * (a - b), t, x).prev_sample
        return x

    own = LoopSampler(loop, steps=8, batch_size=4)
    usual = Sampler(
        scheduler,
        SHAPE,
        8,
        {"labels": torch.tensor([2])},
        3.0,
        {"labels": torch.tensor([0])},
        batch_size=4,
    )
    for mine, theirs in zip(Rollouts(model, own, 8), Rollouts(model, usual, 8), strict=True):
        torch.testing.assert_close(mine.x, theirs.x)
        torch.testing.assert_close(mine.prediction, theirs.prediction)
    assert torch.allclose(ek.generate(model, own, 3).samples, ek.generate(model, usual, 3).samples)


def test_learned_variances():
    model = make(net=lambda: Net(channels=6))
    rollout = rollouts(model)[0]
    assert rollout.prediction.shape[2] == 6 and rollout.x.shape[2] == 3
    fit(model, rollouts(model), steps=2, progress=False)


def test_refusals():
    with pytest.raises(ConfigError, match="expected a sampler, got DDIMScheduler"):
        Rollouts(make(), DDIMScheduler())
    with pytest.raises(ConfigError, match="keep=0"):
        rollouts(make(), keep=0)
    with pytest.raises(ConfigError, match="never called Net"):
        len(Rollouts(make(), LoopSampler(lambda network, seeds, steps: torch.zeros(len(seeds)))))


def test_nan_and_wrong_shapes():
    model = make()
    with pytest.raises(ShapeError, match=r"Is `shape` the shape of one sample"):
        rollouts(make(net=lambda: Net(channels=4)))[0]
    with torch.no_grad():
        model.backbone.out.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="timestep 8"):
        rollouts(model)[0]
