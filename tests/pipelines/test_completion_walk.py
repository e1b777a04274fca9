"""Completion solved along a pipeline's own calls, against the loop of a sampler round its network."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.policies import FULL, NeverExit, StepSchedule
from exitkit.sampling import finer
from tests.tiny_pipelines import PipelineCase, case

STEPS, SEEDS = 6, 4


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finer, "EVALUATIONS", 3 * STEPS)  # how fine the aim is does not matter here


def made(name: str, scheduler: Any = None, **config: Any) -> tuple[PipelineCase, Any, Any]:
    """A pipeline, and its denoiser with a completion."""
    one = case(name)
    pipe = one.make()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    model = ek.wrap(pipe, "completion", example_inputs=one.call(1), **config)
    return one, pipe, model


def fitted(model: Any, sampler: Any, seeds: int = SEEDS) -> list[torch.Tensor]:
    """Fits, and returns what was solved: times, scalars, noise levels."""
    model.policy = StepSchedule((FULL, FULL, 0, FULL, 0, FULL))
    ek.fit(model, ek.Rollouts(model, sampler, seeds=seeds), progress=False)
    head = model.heads.completion
    return [t.clone() for t in (*head.scalars.buffers(), *head.levels.buffers())]


def drawn(one: PipelineCase, pipe: Any) -> torch.Tensor:
    """What the pipeline draws when a user calls it."""
    call = {**one.call(2), "num_inference_steps": STEPS}
    return torch.as_tensor(pipe(**call, generator=torch.Generator().manual_seed(7))[0])


def of_dit(pipe: Any, one: PipelineCase) -> ek.Sampler:
    labels = torch.tensor([call["class_labels"][0] for call in one.requests()[0]])
    dropped = pipe.transformer.config.num_embeds_ada_norm
    return ek.Sampler(
        pipe.scheduler,
        (4, 8, 8),
        steps=STEPS,
        conditions={"class_labels": labels},
        guidance_scale=4.0,
        negative_conditions={"class_labels": torch.full_like(labels, dropped)},
        batch_size=3,
    )


def of_ddim(pipe: Any, one: PipelineCase) -> ek.Sampler:
    return ek.Sampler(pipe.scheduler, (3, 16, 16), steps=STEPS, batch_size=2)


@pytest.mark.parametrize(
    ("name", "scheduler", "loop"),
    [
        ("dit", DPMSolverMultistepScheduler, of_dit),
        pytest.param("ddim", None, of_ddim, marks=pytest.mark.slow),
    ],
)
def test_what_is_solved_is_what_a_loop_round_the_network_solves(
    name: str, scheduler: Any, loop: Any
) -> None:
    one, pipe, model = made(name, scheduler)
    by_pipeline = fitted(model, one.sampler(pipe, rows=3, num_inference_steps=STEPS))
    by_loop = fitted(model, loop(pipe, one))
    for mine, theirs in zip(by_pipeline, by_loop, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-3)
    assert by_loop[1].abs().max() > 0.01
    # The control: other trajectories give other scalars.
    others = fitted(model, loop(pipe, one), seeds=SEEDS + 3)
    assert not torch.allclose(others[1], by_loop[1], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["sd3", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_pipeline_from_fit_to_a_cheaper_call(name: str) -> None:
    one, pipe, model = made(name)
    sampler = one.sampler(pipe, rows=2, num_inference_steps=STEPS)
    model.policy = NeverExit()
    bare, before = drawn(one, pipe), dict(vars(pipe.scheduler))
    threads = threading.active_count()
    fitted(model, sampler)
    assert threading.active_count() == threads and "step" not in vars(pipe.scheduler)
    assert vars(pipe.scheduler).keys() == before.keys()
    found = ek.calibrate(model, sampler, budget=0.7, seeds=2, progress=False)
    assert found.cost <= 0.7 * 1.02 and model.fitted["pipeline"] == type(pipe).__name__
    model.policy = found.policy
    early = drawn(one, pipe)
    depth = model.trace.depth[:, 0].tolist()
    assert [min(d, 1) for d in found.policy.per_step for _ in range(one.calls)] == depth
    assert not torch.equal(early, bare)
    model.policy = NeverExit()
    assert torch.equal(drawn(one, pipe), bare)


def test_an_error_on_the_way_comes_out_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, pipe, model = made("sd3")
    sampler = one.sampler(pipe, rows=2, num_inference_steps=STEPS)
    head, threads = model.heads.completion, threading.active_count()
    calls = 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("in a thread")
        return type(head).forecast(head, *args)

    monkeypatch.setattr(head, "forecast", broken)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        fitted(model, sampler)
    assert threading.active_count() == threads and "step" not in vars(pipe.scheduler)


def test_what_cannot_be_solved_is_refused() -> None:
    one, pipe, model = made("sd", DDIMScheduler)
    rescaled = one.sampler(pipe, num_inference_steps=STEPS, guidance_rescale=0.7)
    with pytest.raises(
        ConfigError, match=r"no weighted mean of the 2 predictions.*guidance_rescale"
    ):
        fitted(model, rescaled)
    noisy = one.sampler(pipe, num_inference_steps=STEPS, eta=1.0)
    with pytest.raises(ConfigError, match="adds noise at every step"):
        fitted(model, noisy)
    one, pipe, models = made("wan")
    with pytest.raises(ConfigError, match="has 2 denoisers"):
        fitted(models, one.sampler(pipe, num_inference_steps=STEPS))


def test_state_that_all_threads_share_is_given_back() -> None:
    one, pipe, model = made("sd3")
    pipe.vae.train()
    before = torch.get_rng_state()
    fitted(model, one.sampler(pipe, rows=1, num_inference_steps=STEPS))
    assert pipe.vae.training and all(part.training for part in pipe.vae.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pipeline_in_half_precision() -> None:
    one = case("dit")
    pipe = one.make()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.to(torch.bfloat16)
    model = ek.wrap(pipe, "completion", example_inputs=one.call(1))
    assert fitted(model, one.sampler(pipe, rows=2, num_inference_steps=STEPS))[1].abs().max() > 0.01


def test_calls_that_are_set_to_different_timesteps_are_refused() -> None:
    one, pipe, model = made("flux")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
    )
    calls, shared = one.requests()
    del shared["height"], shared["width"]
    sizes = [
        {**call, "height": size, "width": size}
        for call, size in zip(calls, (64, 256), strict=False)
    ]
    sampler = ek.PipelineSampler(pipe, sizes, **{**shared, "num_inference_steps": STEPS})
    with pytest.raises(ConfigError, match=r"seed 1: 1000.*the first: 1000.*calls of one size"):
        fitted(model, sampler)
    same = ek.PipelineSampler(pipe, sizes[:1], **{**shared, "num_inference_steps": STEPS})
    fitted(model, same)  # the control


def test_too_few_trajectories_are_refused() -> None:
    one, pipe, model = made("sd3")
    with pytest.raises(ConfigError, match="4 trajectories at least, got 3"):
        fitted(model, one.sampler(pipe, num_inference_steps=STEPS), seeds=3)
