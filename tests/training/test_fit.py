"""`fit`: against a plain PyTorch loop, taken up again after a kill, and what it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from exitkit import wrap
from exitkit.config import PRESETS, ExitConfig, UncertaintyConfig
from exitkit.errors import CheckpointError, ConfigError, MissingExtraError, NonFiniteError
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.training import Checkpoints, Optimizer, checkpoints
from exitkit.training import fit as fitting
from exitkit.training.batches import Example
from exitkit.training.fit import fit, trainable
from exitkit.training.losses import ExitLoss
from exitkit.training.tasks import Classification, FlowMatching, Noise
from tests.copies import copies
from tests.training.test_muon import in_float32

ROOT = Path(__file__).parents[2]


class Block(nn.Module):
    """A residual block; notes in which mode it ran."""

    def __init__(self, dim, dropout):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)
        self.modes = set()

    def forward(self, h, e):
        self.modes.add(self.training)
        return h + self.drop(torch.tanh(self.inner(h) + e[:, None]))


class Net(nn.Module):
    """Tokens, three blocks, tokens; `labels` are an optional condition."""

    def __init__(self, dim=8, dropout=0.0, depth=3):
        super().__init__()
        self.dim = dim
        self.stem = nn.Linear(3, dim)
        self.classes = nn.Embedding(5, dim)
        self.blocks = nn.ModuleList(Block(dim, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 3)

    def forward(self, x, t, labels=None):
        e = torch.cos(t.float()[:, None] / 1000 * torch.arange(1, self.dim + 1))
        if labels is not None:
            e = e + self.classes(labels)
        h = self.stem(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, e)
        return self.out(self.norm(h)).transpose(1, 2).reshape(x.shape)


def make(preset="relative", seed=0, dropout=0.0, **overrides):
    model = wrapped(preset, seed, dropout, **overrides)
    torch.manual_seed(seed)
    return model


@copies
def wrapped(preset, seed, dropout, **overrides):
    torch.manual_seed(seed)
    net = Net(dropout=dropout).eval()
    example = (torch.zeros(2, 3, 4, 4), torch.tensor([10, 500]))
    return wrap(net, preset, example_inputs=example, **overrides)


def examples(count=6, rows=4, seed=0):
    """Ready examples: the same numbers whatever fit does."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x, target = (torch.randn(rows, 3, 4, 4, generator=g) for _ in range(2))
        made.append(Example((x, torch.randint(0, 1000, (rows,), generator=g)), {}, target))
    return made


def noise():
    return Noise(DDPMScheduler())


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def quiet(model, data, task=None, **settings):
    """A fit without a bar; settings of `Optimizer` and `Checkpoints` are sorted in."""
    groups = {"optimizer": Optimizer, "checkpoints": Checkpoints}
    for argument, made in groups.items():
        names = {f.name for f in fields(made)} & settings.keys()
        settings[argument] = made(**{name: settings.pop(name) for name in names})
    return fit(model, data, task, progress=False, **settings)


# What it computes


def test_heads_first_equals_two_plain_fits():
    """`head_steps` is a fit of the heads on a frozen backbone, then the fit that was asked for."""
    data, rates = examples(), {"uncertainty_lr": 1e-2, "warmup": 2}
    model = make("paper")
    before = weights(model)
    done = quiet(model, data, steps=5, head_steps=20, lr=1e-3, head_lr=5e-3, log_every=5, **rates)
    assert [r["step"] for r in done.before] == [5.0, 10.0, 15.0, 20.0]
    assert [r["step"] for r in done.history] == [5.0]

    loss = PRESETS["paper"].loss.model_copy(
        update={"train_backbone": False, "weighting": "uniform"}
    )
    alone = make("paper", loss=loss)
    quiet(alone, data, steps=20, lr=5e-3, **rates)
    same_backbone = [n for n in before if n.startswith("backbone.")]
    assert all(torch.equal(before[n], weights(alone)[n]) for n in same_backbone)
    second = make("paper")
    second.load_state_dict(alone.state_dict())
    quiet(second, data, steps=5, lr=1e-3, head_lr=5e-3, **rates)
    assert same(weights(model), weights(second))
    # Negative control: without the first steps it is another fit.
    straight = make("paper")
    quiet(straight, data, steps=5, lr=1e-3, head_lr=5e-3, **rates)
    assert not same(weights(model), weights(straight))


def test_heads_first_is_not_repeated_by_a_run_that_goes_on(tmp_path):
    data, own = examples(), {"head_steps": 4, "lr": 1e-3, "schedule": "constant"}
    settings = {**own, "folder": tmp_path}
    whole = make("paper")
    quiet(whole, data, steps=6, **own)
    stopped = make("paper")
    quiet(stopped, data, steps=3, **settings)
    again = make("paper")
    result = quiet(again, data, steps=6, **settings)
    assert result.before == ()
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("preset", ["relative", "paper", "official"])
def test_equals_a_plain_loop(preset):
    """AdamW with two rates, warm-up, clipping, averaging: all of it, step by step."""
    steps, lr, u_lr, decay, ema, warmup = 7, 3e-3, 1e-2, 0.1, 0.9, 4
    model, data = make(preset), examples()
    quiet(
        model,
        data,
        steps=steps,
        lr=lr,
        uncertainty_lr=u_lr,
        head_lr=lr,
        weight_decay=decay,
        betas=(0.9, 0.999),
        matrices=None,
        schedule="constant",
        ema=ema,
        warmup=warmup,
        clip=0.05,
    )

    plain, whole = make(preset), preset != "relative"
    if not whole:
        plain.backbone.requires_grad_(False)
    plain.train(whole)
    named = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    groups = [
        {
            "params": [p],
            "lr": 0.0,
            "weight_decay": decay if p.dim() > 1 else 0.0,
            "rate": u_lr if "heads.uncertainty" in n or "heads.final" in n else lr,
        }
        for n, p in named.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    average = {n: p.detach().clone() for n, p in named.items()}
    loss = ExitLoss(config=PRESETS[preset].loss)
    for step, example in enumerate(itertools.islice(itertools.cycle(data), steps)):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / warmup)
        optimizer.zero_grad()
        out = plain(*example.args, output_exits=True)
        loss(out, example.target).total.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 0.05)
        optimizer.step()
        d = min(ema, 1 - (1 + step) ** (-2 / 3))
        for n, p in named.items():
            average[n] = d * average[n] + (1 - d) * p.detach()
    for n, p in model.named_parameters():
        want = average[n] if n in average else plain.get_parameter(n)
        torch.testing.assert_close(p, want, rtol=1e-5, atol=1e-7)
    moved = [n for n, p in make(preset).named_parameters() if not torch.equal(p, weights(model)[n])]
    assert any("heads.output" in n for n in moved) or preset == "official"
    assert any("heads.uncertainty" in n for n in moved)
    assert any("backbone" in n for n in moved) is whole


def test_loss_falls_and_history_is_told():
    model, told = make(), []
    result = quiet(
        model,
        [torch.randn(16, 3, 4, 4)],
        noise(),
        steps=60,
        lr=5e-3,
        warmup=10,
        log_every=25,
        callback=told.append,
    )
    assert [r["step"] for r in result.history] == [25, 50, 60]
    assert list(result.history) == told and result.steps == 60 and result.seconds > 0
    first, last = result.history[0], result.history[-1]
    assert last["layers"] < 0.5 * first["layers"] and last["uncertainty"] < first["uncertainty"]
    parts = {"total", "final", "uncertainty", "layers", "lr", "gradient_norm"}
    assert parts | {f"exit_{k}" for k in range(1, len(model.exits) + 1)} | {"step"} == last.keys()


def test_log_window_is_a_mean():
    one, three = (quiet(make(), examples(), steps=6, log_every=n).history for n in (1, 3))
    for i in (0, 1):
        mean = sum(r["total"] for r in one[3 * i : 3 * i + 3]) / 3
        assert three[i]["total"] == pytest.approx(mean, rel=1e-12)


def test_gradient_accumulation_equals_a_larger_batch():
    whole = examples(count=4, rows=8)
    halves = []
    for e in whole:
        (x, t), y = e.args, e.target
        halves += [Example((x[:4], t[:4]), {}, y[:4]), Example((x[4:], t[4:]), {}, y[4:])]
    large, small, wrong = make(), make(), make()
    a = quiet(large, whole, steps=4, log_every=1)
    b = quiet(small, halves, steps=4, log_every=1, accumulation=2)
    quiet(wrong, halves, steps=4)
    for ra, rb in zip(a.history, b.history, strict=True):
        assert ra["total"] == pytest.approx(rb["total"], rel=1e-5)
        assert ra["gradient_norm"] == pytest.approx(rb["gradient_norm"], rel=1e-4)
    for n, p in weights(large).items():
        torch.testing.assert_close(p, weights(small)[n], rtol=1e-4, atol=1e-6)
    assert not all(torch.allclose(p, weights(wrong)[n]) for n, p in weights(large).items())


def test_average_and_last_weights_differ():
    averaged, last = make(), make()
    quiet(averaged, examples(), steps=5, ema=0.999)
    quiet(last, examples(), steps=5, ema=None)
    name = "heads.output.0.norm.weight"
    names = [n for n in weights(last) if n.startswith("heads.output.0")]
    assert names, name
    assert not same({n: weights(last)[n] for n in names}, {n: weights(averaged)[n] for n in names})


@pytest.mark.parametrize("preset", ["paper", pytest.param("official", marks=pytest.mark.slow)])
def test_the_default_recipe_equals_a_plain_loop(preset, monkeypatch):
    """Muon for the matrices of blocks, AdamW at two rates, a linear end: written down once more."""
    in_float32(monkeypatch)
    steps, model, data = 10, make(preset), examples()
    fit(model, data, steps=steps, optimizer=Optimizer(warmup=3), progress=False)

    plain = make(preset)
    plain.train()
    blocks = tuple(f"backbone.{call.path}." for s in plain.plan.stages for call in s.calls)
    groups = {}
    for n, p in plain.named_parameters():
        muon = p.dim() == 2 and n.startswith(blocks) and n.endswith("weight")
        rate = 5e-3 if n.startswith("heads.") else 1e-3
        groups.setdefault("muon" if muon else rate, []).append(p)
    assert set(groups) == ({"muon", 1e-3, 5e-3}), "all three parts are in use"
    muon = torch.optim.Muon(
        groups.pop("muon"), lr=2.5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adamw = [{"params": ps, "lr": rate} for rate, ps in groups.items()]
    rest = torch.optim.AdamW(adamw, betas=(0.9, 0.99), weight_decay=0.0)
    full = [(g, g["lr"]) for o in (muon, rest) for g in o.param_groups]
    average = {n: p.detach().clone() for n, p in plain.named_parameters()}
    loss = ExitLoss(config=PRESETS[preset].loss)
    for step, example in enumerate(itertools.islice(itertools.cycle(data), steps)):
        for group, rate in full:
            group["lr"] = rate * min(1.0, (step + 1) / 3, (steps - step) / (0.3 * steps))
        out = plain(*example.args, output_exits=True)
        plain.zero_grad()
        loss(out, example.target).total.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        muon.step()
        rest.step()
        d = min(0.998, 1 - (1 + step) ** (-2 / 3))
        for n, p in plain.named_parameters():
            average[n] = d * average[n] + (1 - d) * p.detach()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, average[n], rtol=1e-4, atol=1e-5)
    start = weights(make(preset))
    assert not any(torch.allclose(average[n], start[n], atol=1e-4) for n in start if "inner" in n)


def test_a_fit_that_fails_at_once_has_fitted_nothing():
    data = examples()
    data[0].target.view(-1)[0] = float("nan")
    model = make("paper")
    with pytest.raises(NonFiniteError):
        quiet(model, data, steps=2)
    assert not model.heads.is_fitted and not model.heads.uncertainty[0].is_fitted
    # Control: one good step is enough.
    quiet(model, data[1:], steps=1)
    assert model.heads.is_fitted and model.heads.uncertainty[0].is_fitted


def test_cosine_schedule():
    history = quiet(
        make(), examples(), steps=12, warmup=2, lr=1.0e-3, schedule="cosine", log_every=1
    ).history
    rates = [r["lr"] for r in history]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == pytest.approx(1e-3)
    assert all(b < a for a, b in itertools.pairwise(rates[1:])) and 0 < rates[-1] < 1e-4


def test_whole_config_of_losses():
    """Shared uncertainty heads, one map for all exits, end of the network included."""
    config = PRESETS["paper"].model_copy(
        update={"uncertainty": UncertaintyConfig(shared=True, final=True)}
    )
    model = make(config)
    result = quiet(model, examples(), steps=3)
    assert result.history[-1]["total"] > 0


def test_own_loop_without_fit():
    model, loss = make(), ExitLoss(noise(), PRESETS["relative"].loss)
    optimizer = torch.optim.AdamW(model.exit_parameters(), lr=1e-2)
    totals = []
    for example in examples(count=1) * 30:
        parts = loss(model(*example.args, output_exits=True), example.target)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        totals.append(float(parts.total.detach()))
    assert totals[-1] < 0.7 * totals[0]


# What it leaves as it was


def test_frozen_backbone_stays_as_it_is():
    model = make(dropout=0.5)
    before, state = weights(model), {k: v.clone() for k, v in model.backbone.state_dict().items()}
    quiet(model, examples(), steps=3)
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())
    assert not same(before, weights(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("preset", ["relative", "paper"])
def test_flags_are_restored(preset, fails):
    model = make(preset, dropout=0.3)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    kept = next(model.parameters())
    kept.grad = torch.ones_like(kept)
    training = [m.training for m in model.modules()]
    wanting = [p.requires_grad for p in model.parameters()]
    for block in model.backbone.blocks:
        block.modes.clear()

    def stop(record):
        if fails:
            raise RuntimeError("stop here")

    if fails:
        with pytest.raises(RuntimeError, match="stop here"):
            quiet(model, examples(), steps=3, log_every=2, callback=stop)
    else:
        quiet(model, examples(), steps=3, log_every=2, callback=stop)
    assert [m.training for m in model.modules()] == training
    assert [p.requires_grad for p in model.parameters()] == wanting
    assert torch.equal(kept.grad, torch.ones_like(kept))
    # a frozen backbone ran in eval mode, a trained one in train mode
    seen = set().union(*(block.modes for block in model.backbone.blocks))
    assert seen == {preset == "paper"}


def test_random_states_are_restored():
    model = make()

    def seed():
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    seed()
    want = (torch.rand(3), np.random.rand(3), random.random())
    seed()
    quiet(model, loader(), noise(), steps=2)
    assert torch.equal(torch.rand(3), want[0])
    assert np.array_equal(np.random.rand(3), want[1]) and random.random() == want[2]


def test_no_state_of_accelerate_is_left():
    from accelerate.state import AcceleratorState, PartialState

    quiet(make(), examples(), steps=1, precision="bf16")
    assert not AcceleratorState._shared_state and not PartialState._shared_state
    quiet(make(), examples(), steps=1, precision="no")
    assert not AcceleratorState._shared_state


def test_model_works_as_before_afterwards():
    model = make()
    x, t = torch.randn(3, 3, 4, 4), torch.tensor([5, 50, 500])
    before = model.backbone(x, t)
    forward = model.forward.__func__
    quiet(model, examples(), steps=2, precision="bf16")
    assert torch.equal(model.backbone(x, t), before)
    assert model.forward.__func__ is forward and "forward" not in vars(model)


# Taking up again


class Digits(Dataset):
    """Images with augmentation from all three sources of random numbers."""

    def __len__(self):
        return 22

    def __getitem__(self, i):
        x = torch.full((3, 4, 4), float(i) / 22)
        jitter = float(torch.rand(())) + float(np.random.rand()) + random.random()
        return x + 0.1 * jitter


class Stop(Exception):
    pass


def stop_at(step):
    def callback(record):
        if record["step"] == step:
            raise Stop

    return callback


def loader(**more):
    return DataLoader(Digits(), batch_size=4, shuffle=True, **more)


RESUMES = {
    "shuffled loader with augmentation": ({}, lambda m: (loader(), noise()), {}),
    "loader with its own generator": (
        {},
        lambda m: (loader(generator=torch.Generator().manual_seed(9)), noise()),
        {},
    ),
    "accumulation, cosine, no average": (
        {},
        lambda m: (loader(), noise()),
        {"accumulation": 2, "schedule": "cosine", "ema": None},
    ),
    "whole model with dropout": (
        {"preset": "paper", "dropout": 0.4},
        lambda m: (loader(), noise()),
        {},
    ),
    "own trajectories": (
        {},
        lambda m: (
            Rollouts(m, Sampler(DDIMScheduler(), (3, 4, 4), 4, batch_size=3), 7, keep=1),
            None,
        ),
        {},
    ),
    "carried": (
        {"preset": "carried"},
        lambda m: (
            Rollouts(m, Sampler(DDPMScheduler(), (3, 4, 4), 4, batch_size=3), 6),
            None,
        ),
        {},
    ),
    "carried from a sampler": (
        {"preset": "carried"},
        lambda m: (Sampler(DDIMScheduler(), (3, 4, 4), 4, batch_size=3), None),
        {},
    ),
    "Muon for matrices, linear": (
        {"preset": "paper"},
        lambda m: (loader(), noise()),
        {"matrices": "muon", "schedule": "linear"},
    ),
    "NAdamW, whose state holds more": ({}, lambda m: (loader(), noise()), {"name": "nadamw"}),
    "bf16": ({}, lambda m: (loader(), noise()), {"precision": "bf16"}),
}


MORE = (  # what they add is the state of one object, which every default run has in another form
    "loader with its own generator",
    "carried from a sampler",
    "NAdamW, whose state holds more",
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in MORE)) for c in RESUMES]
)
def test_resume_is_exact(case, tmp_path):
    """Killed at step 6, after a checkpoint at 4: step 5 is repeated, inside a log window."""
    how, make_data, settings = RESUMES[case]
    settings = {"steps": 8, "log_every": 3, "warmup": 5, **settings}
    straight = make(**how)
    want = quiet(straight, *make_data(straight), **settings)
    killed = make(**how)
    common = {**settings, "folder": tmp_path, "every": 2}
    with pytest.raises(Stop):
        quiet(killed, *make_data(killed), **common, callback=stop_at(6))
    assert [p.name for p in checkpoints.existing(tmp_path)] == ["step-00000002", "step-00000004"]
    resumed = make(**how)
    got = quiet(resumed, *make_data(resumed), **common)
    assert got.history == want.history
    assert same(weights(resumed), weights(straight))
    if case in ("carried", "shuffled loader with augmentation"):
        # negative control: another seed is another run
        other = make(**how)
        assert quiet(other, *make_data(other), **settings, seed=1).history != want.history


def test_resume_with_worker_processes(tmp_path):
    def data():
        return loader(num_workers=1)

    settings = {"steps": 8, "log_every": 1, "folder": tmp_path, "every": 2}
    straight = quiet(make(), data(), noise(), **{**settings, "folder": None})
    with pytest.raises(Stop):
        quiet(make(), data(), noise(), **settings, callback=stop_at(7))
    assert quiet(make(), data(), noise(), **settings).history == straight.history


def test_more_steps_go_on(tmp_path):
    straight, grown = make(), make()
    settings = {"log_every": 1, "schedule": "constant"}
    want = quiet(straight, loader(), noise(), steps=8, **settings)
    quiet(grown, loader(), noise(), steps=5, folder=tmp_path, **settings)
    fresh = make()
    got = quiet(fresh, loader(), noise(), steps=8, folder=tmp_path, **settings)
    assert got.history == want.history and same(weights(fresh), weights(straight))
    # all done: the weights are loaded, nothing is trained
    done = make()
    result = quiet(done, loader(), noise(), steps=8, folder=tmp_path, **settings)
    assert result.history == want.history and same(weights(done), weights(straight))
    assert done.heads.is_fitted and all(head.is_fitted for head in done.heads.uncertainty)


def test_resume_false_starts_anew(tmp_path):
    quiet(make(), loader(), noise(), steps=4, folder=tmp_path)
    model = make()
    quiet(model, loader(), noise(), steps=2, folder=tmp_path, resume=False)
    fresh = make()
    quiet(fresh, loader(), noise(), steps=2)
    assert same(weights(model), weights(fresh))


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    written = checkpoints.save_file

    def dies(tensors, path, *args):
        if "00000004" in str(path):
            Path(path).write_bytes(b"half a file")
            raise Stop
        written(tensors, path, *args)

    monkeypatch.setattr(checkpoints, "save_file", dies)
    common = {"steps": 6, "log_every": 1, "folder": tmp_path, "every": 2}
    with pytest.raises(Stop):
        quiet(make(), loader(), noise(), **common)
    assert [p.name for p in checkpoints.existing(tmp_path)] == ["step-00000002"]
    monkeypatch.undo()
    got = quiet(make(), loader(), noise(), **common)
    assert got.history == quiet(make(), loader(), noise(), steps=6, log_every=1).history
    assert not list(tmp_path.glob(".partial*"))


def test_checkpoints_hold_no_code(tmp_path):
    result = quiet(make(), loader(), noise(), steps=2, folder=tmp_path)
    assert result.checkpoint == tmp_path / "step-00000002"
    names = sorted(p.name for p in result.checkpoint.iterdir())
    assert names == ["state.json", "tensors.safetensors"]
    assert json.loads((result.checkpoint / "state.json").read_text())["step"] == 2


def test_checkpoint_refusals(tmp_path):
    common = {"steps": 4, "folder": tmp_path, "every": 2}
    quiet(make(), loader(), noise(), **common)
    with pytest.raises(CheckpointError, match=r"lr=0.5 \(was 0.005\).*resume=False"):
        quiet(make(), loader(), noise(), **common, lr=0.5)
    with pytest.raises(CheckpointError, match="seed=3"):
        quiet(make(), loader(), noise(), **common, seed=3)
    with pytest.raises(CheckpointError, match="another model or config.*heads"):
        quiet(make(exits=(1, 2)), loader(), noise(), **common)
    newest = checkpoints.existing(tmp_path)[-1]
    content = (newest / "tensors.safetensors").read_bytes()
    (newest / "tensors.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged.*go on from step-00000002"):
        quiet(make(), loader(), noise(), **common)
    (newest / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        quiet(make(), loader(), noise(), **common)
    (newest / "state.json").write_text('{"version": 99}')
    (newest / "tensors.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="version 99, expected 1"):
        quiet(make(), loader(), noise(), **common)


# When numbers go wrong


def test_nan_loss_restores_the_last_snapshot(tmp_path):
    data = examples(count=8)
    reference = make()
    quiet(reference, data, steps=4, every=2)
    data[5].target.view(-1)[0] = float("nan")
    config = PRESETS["relative"].model_copy(
        update={"loss": PRESETS["relative"].loss.model_copy(update={"target": "task"})}
    )
    model, twin = make(config), make(config)
    training = [m.training for m in model.modules()]
    with pytest.raises(NonFiniteError, match=r"step 6 of 8: .*exit 1 = nan.*step 4") as caught:
        quiet(model, data, steps=8, every=2, folder=tmp_path)
    assert str(tmp_path / "step-00000004") in str(caught.value)
    assert [m.training for m in model.modules()] == training
    quiet(twin, data, steps=4)
    assert same(weights(model), weights(twin))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    # the data are mended: the run goes on from the last good checkpoint
    data[5].target.view(-1)[0] = 0.0
    assert quiet(model, data, steps=8, every=2, folder=tmp_path).steps == 8


class BadGradient(ExitLoss):
    """The loss is finite, the gradient of one head is not."""

    def __init__(self, model, at):
        super().__init__(config=model.exit_config)
        self.model, self.at, self.calls = model, at, 0

    def __call__(self, output, target=None):
        from dataclasses import replace

        parts = super().__call__(output, target)
        self.calls += 1
        if self.calls == self.at:
            weight = next(iter(self.model.heads.output[1].parameters()))
            parts = replace(parts, total=parts.total + (weight.sum() * 0).sqrt())
        return parts


def test_nan_gradient_names_the_head(monkeypatch):
    model = make(exits=(1, 2))
    monkeypatch.setattr(fitting, "_loss", lambda *_: BadGradient(model, at=3))
    before = weights(model)
    with pytest.raises(NonFiniteError, match=r"step 3 of 5.*heads\.output\.1.*step 0") as caught:
        quiet(model, examples(), steps=5)
    assert "Checkpoints(folder)" in str(caught.value)
    assert same(weights(model), before)


def test_interrupt_leaves_the_averages():
    def interrupt(record):
        raise KeyboardInterrupt

    model, twin = make(), make()
    with pytest.raises(KeyboardInterrupt):
        quiet(model, examples(), steps=9, log_every=4, callback=interrupt)
    quiet(twin, examples(), steps=4)
    assert same(weights(model), weights(twin))


# Data


def test_conditions_reach_the_model():
    model = make()
    x, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 5
    data = TensorDataset(x, labels)
    named = Noise(DDPMScheduler(), conditions=("labels",))
    torch.manual_seed(0)
    net = Net().eval()
    example = (torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 1]))
    conditional = wrap(net, "relative", example_inputs=example)
    a = quiet(conditional, DataLoader(data, batch_size=4), named, steps=2)
    b = quiet(wrap_again(), DataLoader(data, batch_size=4), noise(), steps=2)
    assert a.history == b.history
    dropped = Noise(DDPMScheduler(), conditions=())
    assert quiet(model, DataLoader(data, batch_size=4), dropped, steps=2).steps == 2


def wrap_again():
    torch.manual_seed(0)
    example = (torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 1]))
    return wrap(Net().eval(), "relative", example_inputs=example)


def test_a_generator_runs_out():
    model = make()
    with pytest.raises(ConfigError, match="ran out after 1 passes.*DataLoader"):
        quiet(model, (torch.randn(2, 3, 4, 4) for _ in range(3)), noise(), steps=5)
    assert quiet(model, (torch.randn(2, 3, 4, 4) for _ in range(3)), noise(), steps=3).steps == 3


def test_flow_matching_task():
    assert quiet(make(), [torch.randn(4, 3, 4, 4)], FlowMatching(), steps=2).steps == 2


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h.mean(dim=1))


@pytest.mark.parametrize("preset", ["relative", "paper"])
def test_classification(preset):
    torch.manual_seed(0)
    model = wrap(Classifier().eval(), preset, example_inputs=torch.randn(2, 5, 6))
    labels = torch.randint(0, 4, (32,))
    x = torch.randn(32, 5, 6) + labels[:, None, None]
    data = DataLoader(TensorDataset(x, labels), batch_size=16, shuffle=True)
    history = quiet(model, data, Classification(), steps=40, lr=1e-2, log_every=10).history
    assert history[-1]["exit_1"] < history[0]["exit_1"]


# Refusals


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "steps=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"schedule": "step"}, "'cosine'"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"accumulation": -1, "clip": 0.0}, "clip=0.0.*accumulation=-1"),
        ({"log_every": 0, "every": 0}, "every=0.*log_every=0"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ConfigError, match=match):
        quiet(make(), examples(), **settings)


def test_bad_data():
    x = torch.randn(4, 3, 4, 4)
    rollouts = Rollouts(make(), Sampler(DDIMScheduler(), (3, 4, 4), 3, batch_size=2), 2)
    cases = [
        (make(), ([],), "yield no batch"),
        (make(), (7,), "data is a int"),
        (make(), ([x],), "no task.*Noise"),
        (make(), ([(x, x, x, x)], noise()), "conditions=\\(\\) drops"),
        (make(), (rollouts,), "of another model"),
        (make("paper"), None, "no target but"),
        (make("carried"), ([x], FlowMatching()), "ek.Sampler"),
        (make("carried"), ([x],), "ek.Sampler"),
    ]
    for model, args, match in cases:
        if args is None:
            args = (Sampler(DDIMScheduler(), (3, 4, 4), 3),)
        with pytest.raises(ConfigError, match=match):
            quiet(model, *args, steps=2)


def test_missing_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[train\]"):
        quiet(make(), examples(), steps=1)


def test_progress_bar_can_be_silenced(capsys):
    fit(make(), examples(), steps=2)
    assert "fit" in capsys.readouterr().err
    quiet(make(), examples(), steps=2)
    assert capsys.readouterr() == ("", "")


def test_what_is_trained():
    heads = trainable(make())
    assert heads and all(name.startswith("heads.") for name in heads)
    assert any(name.startswith("backbone.") for name in trainable(make("paper")))
    assert isinstance(PRESETS["paper"], ExitConfig)


# The user's own accelerator


@pytest.fixture
def accelerator():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    yield Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="no")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_own_accelerator(accelerator):
    """Its number of pieces counts, and its state stays."""
    logged = []
    accelerator.log = lambda values, step: logged.append((step, values["total"]))
    theirs, ours = make(), make()
    a = quiet(theirs, examples(), steps=4, log_every=2, accelerator=accelerator)
    assert logged == [(r["step"], r["total"]) for r in a.history]
    assert accelerator.gradient_accumulation_steps == 2
    with pytest.raises(ConfigError, match="precision with accelerator"):
        quiet(make(), examples(), steps=1, accelerator=accelerator, precision="bf16")
    with pytest.raises(ConfigError, match="pass it as accelerator="):
        quiet(make(), examples(), steps=1, precision="bf16")
    b = quiet(ours, examples(), steps=4, log_every=2, accumulation=2)
    assert a.history == b.history and same(weights(theirs), weights(ours))


TWO = """
    import sys, torch
    sys.path.insert(0, {root!r})
    torch.set_num_threads(1)
    from accelerate import Accelerator
    from diffusers import DDIMScheduler, DDPMScheduler
    from tests.training.test_fit import Rollouts, Sampler, examples, loader, make, noise, quiet, weights

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rank = accelerator.process_index
    folder = {folder!r}

    def agree(model):
        for name, p in sorted(weights(model).items()):
            both = accelerator.gather(p[None])
            assert torch.equal(both[0], both[1]), name

    # list of examples: the two processes share its batches, so two rows of four are one of eight
    model = make()
    h = quiet(model, examples(), steps=3, accelerator=accelerator, log_every=1).history
    agree(model)
    # a loader is split; killed and taken up
    model, again, straight = make(), make(), make()
    common = dict(accelerator=accelerator, log_every=1, every=2, schedule="constant")
    want = quiet(straight, loader(), noise(), steps=6, **common)
    quiet(model, loader(), noise(), steps=4, folder=folder, **common)
    accelerator.wait_for_everyone()
    got = quiet(again, loader(), noise(), steps=6, folder=folder, **common)
    agree(again)
    assert got.history == want.history, (got.history, want.history)
    # heads that take no part in a step (carried: the whole backbone is not called by the loss)
    model = make("carried")
    rollouts = Rollouts(model, Sampler(DDIMScheduler(), (3, 4, 4), 4, batch_size=3), 6)
    quiet(model, rollouts, steps=3, accelerator=accelerator)
    agree(model)
    model = make("paper")
    quiet(model, loader(), noise(), steps=3, head_steps=2, accelerator=accelerator)
    agree(model)
    if rank == 0:
        import json
        print("HISTORY", json.dumps(h))
    accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Gloo on the CPU: both end with the same weights, and two half batches make a whole one."""
    script = tmp_path / "two.py"
    folder = str(tmp_path / "run")
    text = textwrap.dedent(TWO).format(root=str(ROOT), folder=folder)
    script.write_text(text)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=29511",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("HISTORY"))
    two = json.loads(line.removeprefix("HISTORY"))
    halves = examples()
    wholes = []
    for a, b in zip(halves[::2], halves[1::2], strict=True):
        args = tuple(torch.cat(pair) for pair in zip(a.args, b.args, strict=True))
        wholes.append(Example(args, {}, torch.cat([a.target, b.target])))
    one = quiet(make(), wholes, steps=3, log_every=1).history
    for ra, rb in zip(two, one, strict=True):
        assert ra["total"] == pytest.approx(rb["total"], rel=1e-5)
        assert ra["gradient_norm"] == pytest.approx(rb["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("preset", ["paper", "official", "berxit"])
def test_what_was_frozen_stays_frozen(preset, capsys):
    """As with PEFT and accelerate; the control is the same parameter when it is not frozen."""
    changed = {}
    for freeze in (True, False):
        model = make(preset)
        model.backbone.blocks[0].requires_grad_(not freeze)
        before, wanted = weights(model), [p.requires_grad for p in model.parameters()]
        task = noise() if preset != "berxit" else None
        quiet(model, examples(), task, steps=3, lr=0.1, warmup=0)
        after = weights(model)
        changed[freeze] = {name for name in before if not torch.equal(before[name], after[name])}
        assert [p.requires_grad for p in model.parameters()] == wanted
        model.print_trainable_parameters()
        told = capsys.readouterr().out.split()
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert told[2] == f"{trains:,}"
    frozen = {n for n in changed[False] if n.startswith("backbone.blocks.0.")}
    assert frozen and changed[True] == changed[False] - frozen


def test_backbones_that_are_to_be_trained_and_wholly_frozen_are_refused():
    model = make("paper")
    model.backbone.requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"preset 'paper' trains the backbone.*Net are frozen.*'relat"
    ):
        quiet(model, examples(), noise(), steps=1)
    frozen = make("relative")
    frozen.backbone.requires_grad_(False)
    quiet(frozen, examples(), noise(), steps=1)  # the control: nothing of it was to be trained
    frozen.heads.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no parameters to train.*heads.requires_grad_\(True\)"):
        quiet(frozen, examples(), noise(), steps=1)
