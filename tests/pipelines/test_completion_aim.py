"""The run that a pipeline's completion aims at, against the pipeline's own calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.pipelines.completion_aim import PipelineAim
from exitkit.sampling import finer
from tests.tiny_pipelines import case

STEPS = 5


def aimed(
    name: str, **options: Any
) -> tuple[Any, Any, PipelineAim, torch.Tensor, list[torch.Tensor]]:
    one = case(name)
    pipe = one.make()
    if name == "dit":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    model = ek.wrap(pipe, "completion", example_inputs=one.call(1), **options)
    sampler = one.sampler(pipe, rows=2, num_inference_steps=STEPS)
    with torch.no_grad(), model.suspended():
        aim = PipelineAim(model, sampler, [3, 4])
        samples, states = aim.run([3, 4], lambda: None)
    return one, pipe, aim, samples, states


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_the_own_run_is_the_pipelines_own(name: str) -> None:
    output = ek.config.OutputConfig(kind="completion", aim="full")
    one, pipe, aim, samples, states = aimed(name, output=output)
    by_hand = torch.cat([one.by_hand(pipe, s, num_inference_steps=STEPS) for s in (3, 4)])
    torch.testing.assert_close(samples, by_hand, rtol=1e-3, atol=1e-3)
    assert len(states) == STEPS == len(aim.solver.timesteps)
    torch.testing.assert_close(states[-1][:2], samples)
    own = aim.normal([float(t) for t in aim.solver.timesteps])
    torch.testing.assert_close(torch.tensor(own), aim.solver.timesteps.float(), rtol=0, atol=1e-2)


def test_a_finer_run_goes_through_the_own_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    far = []
    own = aimed("sd3", output=ek.config.OutputConfig(kind="completion", aim="full"))[4]
    for evaluations in (4 * STEPS, 16 * STEPS):
        monkeypatch.setattr(finer, "EVALUATIONS", evaluations)
        one, pipe, aim, samples, states = aimed("sd3")
        assert len(states) == STEPS and aim.evaluations == evaluations
        far.append(states)
    # Euler's error falls with its steps: the finer two are nearer to each other than the own run.
    gaps = [float((a - b).norm()) for a, b in zip(far[0], far[1], strict=True)]
    steps = [float((a - b).norm()) for a, b in zip(own, far[1], strict=True)]
    assert all(gap < 0.5 * step for gap, step in zip(gaps, steps, strict=True))


@pytest.mark.slow
def test_a_flow_that_shifts_by_the_size_of_the_picture_is_refined_where_it_is() -> None:
    one, pipe, aim, _, states = aimed("flux")
    assert pipe.scheduler.config.use_dynamic_shifting or isinstance(
        pipe.scheduler, FlowMatchEulerDiscreteScheduler
    )
    assert len(states) == STEPS and aim.evaluations >= 4 * STEPS
    own = aim.normal([float(t) for t in aim.solver.timesteps])
    torch.testing.assert_close(torch.tensor(own), aim.solver.timesteps.float(), rtol=1e-3, atol=0.1)


def test_runs_that_begin_in_the_middle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case("sd3")
    pipe = one.make()
    model = ek.wrap(pipe, "completion", example_inputs=one.call(1))
    begin = type(pipe.scheduler).set_timesteps

    def later(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.set_begin_index(1)

    monkeypatch.setattr(type(pipe.scheduler), "set_timesteps", later)
    with pytest.raises(ConfigError, match="begins at step 1 of its timesteps"):
        PipelineAim(model, one.sampler(pipe, num_inference_steps=STEPS), [0])
