"""Carried exits are fitted on rollouts of the full model."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
)
from torch import nn

import exitkit as ek
from exitkit.config import PRESETS, LossConfig, OutputConfig
from exitkit.errors import ConfigError, NonFiniteError
from exitkit.policies import FULL
from exitkit.sampling.rollout import Rollout
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.training import Checkpoints, Optimizer
from exitkit.training.carried import CarriedLoss
from exitkit.training.fit import fit
from exitkit.training.streams import RolloutData
from tests.copies import copies

SEEDS = [0, 1, 2]
SHAPE = (3, 4, 4)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.inner = nn.Linear(dim, dim)

    def forward(self, h, e):
        return h + torch.tanh(self.inner(h) + e[:, None])


class Net(nn.Module):
    """Tokens with an optional class; `channels` may be twice the input's (learned variances)."""

    def __init__(self, dim=8, channels=3):
        super().__init__()
        self.dim = dim
        self.stem = nn.Linear(3, dim)
        self.classes = nn.Embedding(5, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, channels)

    def forward(self, x, t, labels=None):
        e = torch.cos(t.float()[:, None] / 1000 * torch.arange(1, self.dim + 1))
        if labels is not None:
            e = e + self.classes(labels)
        h = self.stem(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, e)
        return self.out(self.norm(h)).transpose(1, 2).unflatten(2, x.shape[2:])


class TinyUNet(nn.Module):
    """Two levels, skips, resolutions that change: exits resume at their mirror."""

    def __init__(self, dim=8):
        super().__init__()
        self.dim = dim
        self.stem = nn.Conv2d(3, dim, 3, padding=1)
        self.down = nn.ModuleList([Conv(dim, dim), Conv(dim, dim, stride=2)])
        self.mid = nn.ModuleList([Conv(dim, dim)])
        self.up = nn.ModuleList([Up(dim), Up(dim)])
        self.out = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x, t):
        e = torch.cos(t.float()[:, None] / 1000 * torch.arange(1, self.dim + 1))[..., None, None]
        h = self.stem(x)
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(h, e)
        for block in self.mid:
            h = block(h, e)
        for block in self.up:
            h = block(h, skips.pop(), e)
        return self.out(h)


class Conv(nn.Module):
    def __init__(self, dim, out, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, stride=stride, padding=1)

    def forward(self, h, e):
        return torch.tanh(self.conv(h) + e)


class Up(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(2 * dim, dim, 3, padding=1)

    def forward(self, h, skip, e):
        h = nn.functional.interpolate(h, size=skip.shape[2:])
        return torch.tanh(self.conv(torch.cat([h, skip], dim=1)) + e)


def make(preset="carried", seed=0, net=Net, labels=False, knots=0, **overrides):
    """A wrapped net; the carried correction is a perceptron unless `knots` says otherwise."""
    model = wrapped(preset, seed, net, labels, knots, **overrides)
    torch.manual_seed(seed)
    return model


@copies
def wrapped(preset, seed, net, labels, knots, **overrides):
    torch.manual_seed(seed)
    if preset == "carried":
        output = PRESETS["carried"].output.model_copy(update={"knots": knots})
        overrides = {"output": output, **overrides}
    backbone = net().eval()
    example = [torch.randn(2, *SHAPE), torch.tensor([10, 500])]
    example += [torch.tensor([0, 1])] if labels else []
    return ek.wrap(backbone, preset, example_inputs=tuple(example), **overrides)


def rollouts(
    model,
    scheduler=None,
    *,
    seeds=8,
    batch_size=4,
    steps=8,
    hidden=None,
    dtype=None,
    keep=4,
    **given,
):
    """Recorded trajectories of a wrapped net, by default two batches of four."""
    sampler = Sampler(scheduler or DDIMScheduler(), SHAPE, steps, batch_size=batch_size, **given)
    return Rollouts(model, sampler, seeds, keep, dtype, hidden)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(seed=0, count=200, **settings):
    model = make()
    rollout = rollouts(model)[0]
    loss = CarriedLoss(**settings)
    return model, rollout, loss, loss.sample(rollout, count, {1: model.heads.output[0]}, gen(seed))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gaps": ()}, "gaps=\\(\\)"),
        ({"gaps": (0, 0)}, "not all 0"),
        ({"previous_gaps": (1, -1)}, "previous_gaps"),
        ({"floor": -1}, "floor"),
        ({"gap_rows": 0}, "gap_rows"),
        ({"gap": "max"}, "'map'"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ConfigError, match=match):
        CarriedLoss(**settings)


# The loss


def stir(model, seed=0):
    """Moves the heads away from their start."""
    g = gen(100 + seed)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    model.heads.mark_fitted()


def square(values):
    values = values.flatten().tolist()
    return sum(v * v for v in values) / len(values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gap", ["rms", "map"])
def test_loss_is_the_naive_loop(seed, gap):
    """Row by row with the real heads; the gap by running the backbone's tail by hand."""
    model, rollout, loss, windows = drawn(seed, count=9, gap_rows=4, gap=gap, floor=1e-3)
    stir(model, seed)
    net, head = model.backbone, model.heads.output[0]
    parts = loss(model, windows)
    ratios, gaps = [], []
    window = windows.exits[1]
    with torch.no_grad():
        embedding = model.heads.embed(windows.timestep)
        landing = head(window.h, embedding, state=window.state)
        u = model.heads.uncertainty[0](window.state.drift(window.h), embedding)
        y = net.out(net.norm(landing)).transpose(1, 2).unflatten(2, (4, 4))
        for n in range(9):
            reuse = square(window.h[n] + window.state.last.v[n] - window.landing[n])
            size = square(window.landing[n])
            ratios.append(square(landing[n] - window.landing[n]) / (reuse + 1e-3 * size))
        for n in range(4):
            size = math.sqrt(square(windows.prediction[n])) + 1e-6
            error = (y[n] - windows.prediction[n]).abs()
            pseudo = torch.tanh(error / size)
            if gap == "rms":
                pseudo = torch.full_like(u[n], math.tanh(math.sqrt(square(error)) / size))
            gaps.append(square(u[n] - pseudo))
    assert float(parts.layers.detach()) == pytest.approx(sum(ratios) / 9, rel=1e-4)
    assert float(parts.uncertainty.detach()) == pytest.approx(sum(gaps) / 4, rel=1e-4)
    want = float(parts.layers.detach()) + float(parts.uncertainty.detach())
    assert float(parts.total.detach()) == pytest.approx(want, rel=1e-6)
    assert parts.final is None and parts.per_exit.tolist() == pytest.approx([sum(ratios) / 9])


def test_untrained_heads_are_plain_reuse():
    model, _, loss, windows = drawn(floor=0.0)
    parts = loss(model, windows)
    assert float(parts.layers.detach()) == pytest.approx(1.0, rel=1e-5)


def test_weights_of_the_config():
    config = LossConfig(layer_weight=0.5, uncertainty_weight=0.25, unweighted=2.0)
    model, _, _, windows = drawn(count=6)
    parts = CarriedLoss(config)(model, windows)
    want = 0.5 * parts.layers + 0.25 * parts.uncertainty + 2 * parts.unweighted
    torch.testing.assert_close(parts.total, want)


def test_gradients_stay_apart():
    """The uncertainty's target is stopped: it cannot move the output head, nor the reverse."""
    model, _, _, windows = drawn(count=6)
    stir(model)
    model.requires_grad_(True)
    for config, moved, still in (
        (LossConfig(layer_weight=0), "uncertainty", "output"),
        (LossConfig(uncertainty_weight=0), "output", "uncertainty"),
    ):
        model.zero_grad(set_to_none=True)
        CarriedLoss(config)(model, windows).total.backward()
        sums = {
            part: sum(
                float(p.grad.abs().sum())
                for n, p in model.heads.named_parameters()
                if n.startswith(part) and p.grad is not None
            )
            for part in ("output", "uncertainty")
        }
        assert sums[moved] > 0 == sums[still]
        assert all(p.grad is None or not p.grad.any() for p in model.backbone.parameters())


def test_non_finite_names_the_exit():
    model, _, loss, windows = drawn(count=4)
    with torch.no_grad():
        model.heads.output[0].last.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="exit 1 = nan"):
        loss(model, windows)


# Training


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fitting_beats_plain_reuse(order):
    model = make(output=OutputConfig(kind="carried", order=order))
    source = rollouts(model, batch_size=64, seeds=32)
    history = fit(
        model,
        source,
        steps=150,
        optimizer=Optimizer(lr=3e-3, warmup=10),
        checkpoints=Checkpoints(log_every=150),
        ema=0.98,
        progress=False,
    ).history
    held_out = rollouts(model, batch_size=16, seeds=range(77, 93))[0]
    with torch.no_grad():
        windows = CarriedLoss().sample(held_out, 256, {1: model.heads.output[0]}, gen(1))
        fitted = CarriedLoss(floor=0.0)(model, windows)
    # 1 is plain reuse; unseen trajectories
    assert float(fitted.layers) < 0.5
    assert history[-1]["uncertainty"] < 0.5 < 0.998**2


def test_fitted_uncertainty_orders_rows_by_their_gap():
    model = make()
    source = rollouts(model, batch_size=64, seeds=32)
    own = Optimizer(lr=3e-3, warmup=10)
    fit(model, source, steps=200, optimizer=own, ema=0.98, progress=False)
    held_out = rollouts(model, batch_size=32, seeds=range(77, 109))[0]
    windows = CarriedLoss().sample(held_out, 128, {1: model.heads.output[0]}, gen(1))
    window = windows.exits[1]
    with torch.no_grad():
        embedding = model.heads.embed(windows.timestep)
        landing = model.heads.output[0](window.h, embedding, state=window.state)
        y = model.replay((), windows.examples[0].kwargs, [landing])[0]
        gap = (y - windows.prediction).flatten(1).square().mean(1).sqrt()
        gap = gap / windows.prediction.flatten(1).square().mean(1).sqrt()
        u = model.heads.uncertainty[0](window.state.drift(window.h), embedding)
        u = u.flatten(1).mean(1)
    ranks = torch.stack([gap.argsort().argsort().double(), u.argsort().argsort().double()])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.5


def test_fit_makes_generation_closer_to_the_full_model():
    """The whole way: fit, then a trajectory that carries every second step."""
    model = make()

    def last(policy_of_step):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(8)
        x = torch.randn(8, *SHAPE, generator=gen(9))
        with model.trajectory(steps=8), torch.no_grad():
            for step, t in enumerate(scheduler.timesteps):
                model.policy = ek.policies.FixedExit(policy_of_step(step))
                x = scheduler.step(model(x, t.expand(8)), t, x).prev_sample
        return x, model.trace.depth[:, 0].tolist()

    model.heads.mark_fitted()
    full, _ = last(lambda step: FULL)
    reused, depth = last(lambda step: 1 if step % 2 else FULL)
    fit(
        model,
        rollouts(model, batch_size=64, seeds=32),
        steps=150,
        optimizer=Optimizer(lr=3e-3, warmup=10, schedule="constant", betas=(0.9, 0.999)),
        ema=0.98,
        progress=False,
    )
    again, _ = last(lambda step: FULL)
    carried, _ = last(lambda step: 1 if step % 2 else FULL)
    assert torch.equal(again, full) and depth == [2, 1] * 4
    before, after = float((reused - full).norm()), float((carried - full).norm())
    assert 0 < after < 0.7 * before


def test_several_exits():
    model = make(exits=(1, 2, 3))
    result = fit(
        model, rollouts(model), steps=3, checkpoints=Checkpoints(log_every=1), progress=False
    )
    assert {"exit_1", "exit_2", "exit_3"} <= result.history[0].keys()
    assert result.history[0]["layers"] == pytest.approx(3.0, rel=1e-3)


def test_unet_resumes_at_its_mirror():
    model = make(net=TinyUNet)
    assert not model.heads.output[0].relative
    assert model.heads.landings[0] != model.plan.num_stages
    source = rollouts(model, batch_size=32, seeds=16)
    own, told = Optimizer(lr=3e-3, warmup=5), Checkpoints(log_every=20)
    history = fit(model, source, steps=60, optimizer=own, checkpoints=told, progress=False).history
    assert history[-1]["layers"] < 0.8 * history[0]["layers"]
    assert history[-1]["uncertainty"] < history[0]["uncertainty"]


def test_points_for_other_presets():
    """Data-free `relative`: random steps and rows, the model's own output as target."""
    model = make("relative")
    source = rollouts(model, batch_size=32)
    example = RolloutData(source, None, seed=3).next(0)
    assert example.target is None and example.kwargs["x"].shape == (32, *SHAPE)
    rollout: Rollout = source[0]
    at = {tuple(x.flatten().tolist()) for x in rollout.x.flatten(0, 1)}
    assert all(tuple(x.flatten().tolist()) in at for x in example.kwargs["x"])
    assert len(set(example.kwargs["t"].tolist())) > 3
    own, told = Optimizer(lr=5e-3, warmup=5), Checkpoints(log_every=20)
    history = fit(model, source, steps=60, optimizer=own, checkpoints=told, progress=False).history
    assert history[-1]["layers"] < 0.5 * history[0]["layers"] and "final" not in history[0]


def test_a_loader_is_no_trajectory():
    model = make(labels=True)
    data, task = [(torch.randn(6, *SHAPE), torch.arange(6))], ek.tasks.Noise(DDIMScheduler())
    with pytest.raises(ConfigError, match=r"fitted on trajectories.*ek\.fit\(model, ek\.Sampler"):
        fit(model, data, task, steps=1)
    with pytest.raises(ConfigError, match="trajectories need no task"):
        fit(model, rollouts(model), task, steps=1)
