"""Fitting completion against a loop by hand around the bare network and diffusers' scheduler."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.policies import FULL, StepSchedule
from exitkit.sampling import finer
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.rollouts import Rollouts
from tests.copies import copies
from tests.execution.test_carried import tiny_uvit
from tests.heads.completion.naive import KEPT, Row

STEPS, FULLS = 8, 4


class Denoiser(nn.Module):
    """The best network for normal data, and a tenth of a small transformer on top."""

    def __init__(self, seed=0):
        super().__init__()
        self.net = tiny_uvit(seed)

    def forward(self, x, timesteps):
        kept = KEPT.to(x)[timesteps.long()].view(-1, 1, 1, 1)
        noise = (1 - kept).sqrt() * (x - 0.3 * kept.sqrt()) / (0.25 * kept + 1 - kept)
        return noise + 0.1 * torch.tanh(self.net(x, timesteps.float()))


@copies
def wrapped(seed=0, **settings):
    net = Denoiser(seed).eval()
    example = (torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0]))
    output = ek.config.OutputConfig(kind="completion", **settings)
    return net, ek.wrap(net, "completion", example_inputs=example, output=output)


def sampler(scheduler=None, steps=STEPS):
    scheduler = DPMSolverMultistepScheduler() if scheduler is None else scheduler
    return ek.Sampler(scheduler, (1, 8, 8), steps=steps, batch_size=16)


@pytest.fixture(scope="module")
def fitted():
    net, model = wrapped()
    result = ek.fit(model, Rollouts(model, sampler(), seeds=16), progress=False)
    model.policy = StepSchedule.completing(STEPS, FULLS)
    return net, model, result


@torch.no_grad()
def test_samples_are_those_of_a_loop_by_hand(fitted):
    net, model, result = fitted
    assert result.steps == 0 and model.heads.is_fitted
    run = sampler().run(model, [200, 201])
    assert run.trace.depth[:, 0].tolist() == [min(d, 1) for d in model.policy.per_step]
    head, times = model.heads.completion, DPMSolverMultistepScheduler()
    times.set_timesteps(STEPS)
    scalars = {
        (int(t), full): head.scalars.at(full, t[None].double())[0].tolist()
        for t in times.timesteps
        for full in (True, False)
    }
    for row, seed in enumerate((200, 201)):
        scheduler, alone = DPMSolverMultistepScheduler(), Row(net, scalars)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed))[None]
        for t, depth in zip(scheduler.timesteps, model.policy.per_step, strict=True):
            made, _ = alone(x, int(t), depth == FULL)
            x = scheduler.step(made, t, x).prev_sample
        torch.testing.assert_close(run.samples[row], x[0], rtol=1e-3, atol=1e-3)


def test_scalars_bring_new_samples_nearer_to_the_converged_run(fitted):
    net, model, _ = fitted
    seeds = range(300, 308)
    converged = sampler(steps=200).run(net, seeds).samples
    plain = sampler(steps=FULLS).run(net, seeds).samples
    ours = sampler().run(model, seeds).samples
    head = model.heads.completion
    solved = head.scalars.values.clone()
    try:
        head.scalars.values.zero_()
        alone = sampler().run(model, seeds).samples
    finally:
        head.scalars.values.copy_(solved)
    far = [float(paired_distance(s, converged).mean()) for s in (ours, alone, plain)]
    assert far[0] < 0.8 * far[1] and far[0] < 0.8 * far[2]


def test_the_file_holds_what_was_solved(fitted, tmp_path):
    net, model, _ = fitted
    before = sampler().run(model, [5]).samples
    model.save_pretrained(tmp_path)
    other = Denoiser(0).eval()
    other.load_state_dict(net.state_dict())
    again = ek.load(other, tmp_path, example_inputs=(torch.randn(2, 1, 8, 8), torch.ones(2) * 9))
    assert torch.equal(sampler().run(again, [5]).samples, before)


def test_calibrate_places_full_steps_within_the_budget(fitted, monkeypatch):
    monkeypatch.setattr(finer, "EVALUATIONS", 40)  # what it aims at is no matter here
    _, model, _ = fitted
    kept = model.policy
    found = ek.calibrate(model, sampler(), budget=0.51, seeds=4, progress=False)
    assert isinstance(found.policy, StepSchedule) and found.cost <= 0.51 * 1.02
    assert found.policy.per_step.count(FULL) == 4 and len(found.history) >= 4
    assert model.policy is kept
    with pytest.raises(ConfigError, match="has none"):
        ek.calibrate(model, sampler(), budget=0.5, policy="threshold", progress=False)


def test_full_steps_are_where_the_policy_has_them():
    _, model = wrapped()
    model.policy = StepSchedule((FULL,) * 5 + (0,) * 2 + (FULL,))
    ek.fit(model, Rollouts(model, sampler(), seeds=4), progress=False)
    times = model.heads.completion.scalars.times
    assert times.isfinite().sum(1).tolist() == [6, 2]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (sampler(DDPMScheduler()), "adds noise"),
        (sampler(DPMSolverMultistepScheduler(thresholding=True)), "thresholds"),
        ([torch.randn(2, 1, 8, 8)], "list"),
    ],
)
def test_what_cannot_be_solved_is_refused(data, why):
    _, model = wrapped()
    with pytest.raises(ConfigError, match=why):
        ek.fit(model, data, progress=False)


def test_clipped_samplers_and_full_runs_can_be_aimed_at():
    _, model = wrapped(aim="full")
    clipped = sampler(DDIMScheduler(clip_sample=True))
    model.policy = StepSchedule((FULL,) * STEPS)
    ek.fit(model, Rollouts(model, clipped, seeds=8), progress=False)
    full = clipped.run(model.backbone, range(4)).samples
    # Aimed at its own full run, a full run has nothing to be moved by.
    torch.testing.assert_close(clipped.run(model, range(4)).samples, full, rtol=0, atol=0.05)
