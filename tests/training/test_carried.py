"""Walks of the full model, and the fitting of carried exits on them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

import exitkit as ek
from exitkit.config import PRESETS, LossConfig, OutputConfig
from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.policies import FULL
from exitkit.training.carried import CarriedLoss
from exitkit.training.fit import fit
from exitkit.training.rollout import Rollout
from exitkit.training.rollouts import Rollouts
from exitkit.training.seeds import generator
from exitkit.training.streams import walks_for

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
    torch.manual_seed(seed)
    if preset == "carried":
        output = PRESETS["carried"].output.model_copy(update={"knots": knots})
        overrides = {"output": output, **overrides}
    backbone = net().eval()
    example = [torch.randn(2, *SHAPE), torch.tensor([10, 500])]
    example += [torch.tensor([0, 1])] if labels else []
    return ek.wrap(backbone, preset, example_inputs=tuple(example), **overrides)


def walks(model, scheduler=None, **settings):
    settings = {"steps": 8, "batch_size": 4, "count": 8, **settings}
    return Rollouts(model, scheduler or DDIMScheduler(), SHAPE, **settings)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# Walks


SCHEDULERS = {
    "ddim": DDIMScheduler(),
    "ddpm": DDPMScheduler(),
    "dpm": DPMSolverMultistepScheduler(),
    "euler": EulerDiscreteScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_walk_is_the_bare_models_own_trajectory(name):
    """Against a sampling loop of the bare backbone from the same start and the same noise."""
    scheduler = SCHEDULERS[name]
    model = make()
    walk = walks(model, scheduler).walk(0)
    bare, sampler = model.backbone, copy.deepcopy(scheduler)
    sampler.set_timesteps(8)
    numbers = generator(0, "walk", 0)
    x = torch.randn(4, *SHAPE, generator=numbers) * getattr(sampler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for i, t in enumerate(sampler.timesteps):
            given = sampler.scale_model_input(x, t) if hasattr(sampler, "scale_model_input") else x
            y = bare(given, t.expand(4))
            torch.testing.assert_close(walk.x[i], given, rtol=0, atol=0)
            torch.testing.assert_close(walk.prediction[i], y, rtol=0, atol=0)
            x = sampler.step(y, t, x, generator=numbers).prev_sample
    assert torch.equal(walk.timesteps, sampler.timesteps) and walk.steps == 8 and walk.rows == 4
    assert not hasattr(scheduler, "num_inference_steps") or scheduler.num_inference_steps is None


def test_walks_are_functions_of_seed_and_number():
    model = make()
    source = walks(model, DDPMScheduler())
    again, other = walks(model, DDPMScheduler()), walks(model, DDPMScheduler(), seed=1)
    assert len(source) == 2
    assert torch.equal(source[1].x, again.walk(1).x)
    assert not torch.equal(source[0].x, source[1].x) and not torch.equal(source[0].x, other[0].x)
    assert torch.equal(source[-1].x, source[1].x) and len(list(source)) == 2
    with pytest.raises(IndexError, match="walk 2 of 2"):
        source[2]


def test_policy_and_flags_do_not_matter():
    """The full model walks, whatever the policy; train flags come back."""
    model = make()
    want = walks(model).walk(0)
    model.policy = ek.policies.FixedExit(1)
    model.train()
    model.backbone.blocks[2].eval()
    flags = [m.training for m in model.modules()]
    got = walks(model).walk(0)
    assert torch.equal(got.prediction, want.prediction)
    assert [m.training for m in model.modules()] == flags


def test_hidden_states_are_those_of_the_exits():
    model = make(exits=(1, 3))
    walk = walks(model).walk(0)
    seen = {}
    hooks = [
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i, out))
        for i, block in enumerate(model.backbone.blocks, start=1)
    ]
    with torch.no_grad():
        model.backbone(walk.x[5], walk.timesteps[5].expand(4))
    for hook in hooks:
        hook.remove()
    assert walk.hidden.keys() == {1, 2} == walk.landing.keys()
    assert torch.equal(walk.hidden[1][5], seen[1]) and torch.equal(walk.hidden[2][5], seen[3])
    assert torch.equal(walk.landing[1][5], seen[4])
    # what two exits share is kept once
    assert walk.landing[1] is walk.landing[2]
    assert not walks(model, hidden=False).walk(0).hidden
    assert not walks(make("relative")).walk(0).hidden


def test_half_precision_storage():
    model = make()
    full, half = walks(model).walk(0), walks(model, dtype=torch.bfloat16).walk(0)
    assert half.hidden[1].dtype == half.x.dtype == torch.bfloat16
    steps, rows = torch.tensor([1, 2]), torch.tensor([0, 3])
    taken = half.take(half.hidden[1], steps, rows)
    assert taken.dtype == torch.float32
    torch.testing.assert_close(taken, full.hidden[1][steps, rows], rtol=0.02, atol=0.02)
    assert half.at(steps, rows).args[0].dtype == torch.float32


def test_keeping_and_staying():
    model, made = make(), []
    source = walks(model, count=12, keep=2, stay=2)
    walk = source.walk
    source.walk = lambda i: made.append(i) or walk(i)
    order = [source.at_step(n) for n in range(8)]
    assert made == [0, 1, 2, 0]
    assert all(order[n] is order[n + 1] for n in (0, 2, 4, 6))
    assert torch.equal(order[0].x, order[6].x)
    assert walks(model, count=8).stay == 1 and walks(model, count=99, keep=2).stay == 32


def test_conditions_from_pools_and_functions():
    model = make(labels=True)
    pool = {"labels": torch.tensor([1, 3])}
    walk = walks(model, inputs=pool, batch_size=16, count=16).walk(0)
    assert set(walk.inputs["labels"].tolist()) == {1, 3}
    with torch.no_grad():
        y = model.backbone(walk.x[2], walk.timesteps[2].expand(16), walk.inputs["labels"])
    assert torch.equal(y, walk.prediction[2])
    at = walk.at(torch.tensor([2, 2]), torch.tensor([5, 9]))
    assert torch.equal(at.kwargs["labels"], walk.inputs["labels"][[5, 9]])
    drawn = walks(
        model, inputs=lambda n, g: {"labels": torch.randint(0, 5, (n,), generator=g)}
    ).walk(0)
    assert drawn.inputs["labels"].shape == (4,)
    with pytest.raises(ShapeError, match="different lengths"):
        walks(model, inputs={"labels": torch.zeros(2), "b": torch.zeros(3)}).walk(0)


def test_guidance_walks_both_branches():
    model, scheduler = make(labels=True), DDIMScheduler()
    settings = {
        "inputs": {"labels": torch.tensor([2])},
        "negative_inputs": {"labels": torch.tensor([0])},
        "guidance_scale": 3.0,
    }
    walk = walks(model, scheduler, **settings).walk(0)
    assert walk.rows == 8 and walk.inputs["labels"].tolist() == [0] * 4 + [2] * 4
    assert torch.equal(walk.x[3, :4], walk.x[3, 4:])
    scheduler.set_timesteps(8)
    negative, positive = walk.prediction[3, :4], walk.prediction[3, 4:]
    mixed = negative + 3.0 * (positive - negative)
    following = scheduler.step(mixed, scheduler.timesteps[3], walk.x[3, :4]).prev_sample
    torch.testing.assert_close(walk.x[4, :4], following)
    with pytest.raises(ConfigError, match="same arguments"):
        walks(model, **{**settings, "negative_inputs": {}}).walk(0)


def test_learned_variances():
    model = make(net=lambda: Net(channels=6))
    walk = walks(model).walk(0)
    assert walk.prediction.shape[2] == 6 and walk.x.shape[2] == 3
    fit(model, walks(model), steps=2, progress=False)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0, "count": 0}, "steps=0, count=0"),
        ({"stay": 0}, "stay=0"),
        ({"guidance_scale": 2.0}, "pass both"),
        ({"scheduler": object()}, "set_timesteps"),
    ],
)
def test_walk_refusals(settings, match):
    with pytest.raises(ConfigError, match=match):
        walks(make(), **settings)


def test_nan_and_wrong_shapes():
    model = make()
    with pytest.raises(ShapeError, match="Does shape="):
        other = make(net=lambda: Net(channels=4))
        walks(other).walk(0)
    with torch.no_grad():
        model.backbone.out.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="timestep 8"):
        walks(model).walk(0)


def drawn(seed=0, count=200, **settings):
    model = make()
    walk = walks(model).walk(0)
    loss = CarriedLoss(**settings)
    return model, walk, loss, loss.sample(walk, count, {1: model.heads.output[0]}, gen(seed))


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


def square(values):
    values = values.flatten().tolist()
    return sum(v * v for v in values) / len(values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gap", ["rms", "map"])
def test_loss_is_the_naive_loop(seed, gap):
    """Row by row with the real heads; the gap by running the backbone's tail by hand."""
    model, walk, loss, windows = drawn(seed, count=9, gap_rows=4, gap=gap, floor=1e-3)
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


@pytest.mark.parametrize("order", [1, 2])
def test_fitting_beats_plain_reuse(order):
    model = make(output=OutputConfig(kind="carried", order=order))
    source = walks(model, batch_size=16, count=32, draw=64)
    history = fit(
        model, source, steps=150, lr=3e-3, warmup=10, ema=0.98, log_every=150, progress=False
    ).history
    held_out = walks(model, batch_size=16, count=16, seed=77).walk(0)
    with torch.no_grad():
        windows = CarriedLoss().sample(held_out, 256, {1: model.heads.output[0]}, gen(1))
        fitted = CarriedLoss(floor=0.0)(model, windows)
    # 1 is plain reuse; unseen trajectories
    assert float(fitted.layers) < 0.5
    assert history[-1]["uncertainty"] < 0.5 < 0.998**2


def test_fitted_uncertainty_orders_rows_by_their_gap():
    model = make()
    source = walks(model, batch_size=16, count=32, draw=64)
    fit(model, source, steps=250, lr=3e-3, warmup=10, ema=0.98, progress=False)
    held_out = walks(model, batch_size=32, count=32, seed=77).walk(0)
    windows = CarriedLoss().sample(held_out, 128, {1: model.heads.output[0]}, gen(1))
    window = windows.exits[1]
    with torch.no_grad():
        embedding = model.heads.embed(windows.timestep)
        landing = model.heads.output[0](window.h, embedding, state=window.state)
        y = model.replay(windows.examples[0].args, {}, [landing])[0]
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

    full, _ = last(lambda step: FULL)
    reused, depth = last(lambda step: 1 if step % 2 else FULL)
    fit(
        model,
        walks(model, batch_size=16, count=32, draw=64),
        steps=150,
        lr=3e-3,
        warmup=10,
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
    result = fit(model, walks(model), steps=3, log_every=1, progress=False)
    assert {"exit_1", "exit_2", "exit_3"} <= result.history[0].keys()
    assert result.history[0]["layers"] == pytest.approx(3.0, rel=1e-3)


def test_unet_resumes_at_its_mirror():
    model = make(net=TinyUNet)
    assert not model.heads.output[0].relative
    assert model.heads.landings[0] != model.plan.num_stages
    source = walks(model, batch_size=8, count=16, draw=32)
    history = fit(model, source, steps=60, lr=3e-3, warmup=5, log_every=20, progress=False).history
    assert history[-1]["layers"] < 0.8 * history[0]["layers"]
    assert history[-1]["uncertainty"] < history[0]["uncertainty"]


def test_points_for_other_presets():
    """Data-free `relative`: random steps and rows, the model's own output as target."""
    model = make("relative")
    source = walks(model, draw=32)
    example = source.points(0, gen(3))
    assert example.target is None and example.args[0].shape == (32, *SHAPE)
    walk: Rollout = source[0]
    at = {tuple(x.flatten().tolist()) for x in walk.x.flatten(0, 1)}
    assert all(tuple(x.flatten().tolist()) in at for x in example.args[0])
    assert len(set(example.args[1].tolist())) > 3
    history = fit(model, source, steps=60, lr=5e-3, warmup=5, log_every=20, progress=False).history
    assert history[-1]["layers"] < 0.5 * history[0]["layers"] and "final" not in history[0]


def test_carried_from_a_loader_takes_shape_and_conditions():
    model = make(labels=True)
    x, labels = torch.randn(6, *SHAPE), torch.tensor([1, 4, 1, 4, 1, 4])
    data = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    task = ek.tasks.Noise(DDIMScheduler())
    source = walks_for(model, data, task, seed=5)
    assert source.shape == SHAPE and source.seed == 5
    assert source.inputs["labels"].tolist() == labels.tolist()
    named = [{"image": x, "labels": labels}]
    assert torch.equal(walks_for(model, named, task, 0).inputs["labels"], labels)
    plain = walks_for(make(), [x], task, 0)
    assert plain.inputs is None
