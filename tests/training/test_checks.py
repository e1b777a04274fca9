"""What a network was trained to predict is said once, and held to wherever it is run."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.sampler import Sampler
from exitkit.training.fit import fit
from exitkit.training.tasks import FlowMatching, Noise, Velocity
from exitkit.training.tasks import Sample as CleanSample
from tests.training.test_carried import SHAPE, make

KINDS = ["epsilon", "v_prediction", "sample", "flow_prediction"]


def scheduler(kind):
    if kind == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(prediction_type=kind)


def task(kind):
    if kind == "flow_prediction":
        return FlowMatching()
    kinds = {"epsilon": Noise, "v_prediction": Velocity, "sample": CleanSample}
    return kinds[kind](scheduler(kind))


def fitted_on_data(kind, preset="relative"):
    model = make(preset)
    fit(model, [torch.randn(2, *SHAPE)], task(kind), steps=1, progress=False)
    return model


def sampler(kind):
    return Sampler(scheduler(kind), SHAPE, 2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_samplers_are_held_to_the_task_of_the_fit(kind):
    model = fitted_on_data(kind)
    assert model.predicts == kind
    for other in [kind, *(k for k in KINDS if k != kind)]:
        if other == kind:  # control: the sampler that fits draws
            assert ek.generate(model, sampler(other), seeds=1).samples.shape == (1, *SHAPE)
            continue
        with pytest.raises(ConfigError, match=f"for '{other}'.*predicts '{kind}'.*nonsense"):
            ek.generate(model, sampler(other), seeds=1)
        with pytest.raises(ConfigError, match=f"predicts '{kind}'"):
            ek.calibrate(model, sampler(other), budget=0.5, progress=False)
    with pytest.raises(ConfigError, match=f"predicts '{kind}'"):
        ek.compare([ek.Entry("mine", model)], sampler(other), seeds=2, progress=False)
    model.predicts = None  # as the message says
    assert ek.generate(model, sampler(other), seeds=1).samples.shape == (1, *SHAPE)


def test_one_solver_with_flow_sigmas_is_a_flow():
    """diffusers' DPM-Solver says it by its setting, its flow schedulers by their class."""
    flow = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    model = fitted_on_data("flow_prediction")
    assert ek.generate(model, Sampler(flow, SHAPE, 2), seeds=1).samples.isfinite().all()
    with pytest.raises(ConfigError, match=r"tasks\.FlowMatching"):
        Noise(flow)


@pytest.mark.parametrize("preset", ["relative", "carried", "completion"])
def test_a_fit_on_rollouts_says_what_its_scheduler_does(preset):
    model = make(preset)
    velocity = sampler("v_prediction").with_steps(6)
    fit(model, ek.Rollouts(model, velocity, 4), steps=1, progress=False)
    assert model.predicts == "v_prediction"
    with pytest.raises(ConfigError, match="takes predictions for 'epsilon'"):
        ek.generate(model, sampler("epsilon").with_steps(6), seeds=1)
    # The backbone is frozen and predicts what it did: the later fit is believed.
    fit(model, ek.Rollouts(model, sampler("epsilon").with_steps(6), 4), steps=1, progress=False)
    assert model.predicts == "epsilon"
    assert ek.generate(model, sampler("epsilon").with_steps(6), seeds=1).samples.isfinite().all()


def test_a_network_is_not_trained_to_predict_two_things():
    model = fitted_on_data("epsilon", "paper")
    with pytest.raises(ConfigError, match=r"Velocity trains this Net to predict 'v_prediction'"):
        fit(model, [torch.randn(2, *SHAPE)], task("v_prediction"), steps=1, progress=False)
    fit(model, [torch.randn(2, *SHAPE)], task("epsilon"), steps=1, progress=False)
    model.predicts = None
    fit(model, [torch.randn(2, *SHAPE)], task("v_prediction"), steps=1, progress=False)
    assert model.predicts == "v_prediction"
    # of a frozen network the later fit is believed
    frozen = fitted_on_data("epsilon")
    fit(frozen, [torch.randn(2, *SHAPE)], task("v_prediction"), steps=1, progress=False)
    assert frozen.predicts == "v_prediction"


def test_loops_of_ones_own_say_nothing_and_are_told_nothing():
    own = LoopSampler(lambda model, seeds, steps: torch.zeros(len(seeds), *SHAPE), 2)
    model = fitted_on_data("sample")
    assert ek.generate(model, own, seeds=1).samples.shape == (1, *SHAPE)
    assert make().predicts is None  # and nothing is held to what nobody has said


def test_saved_exits_know_what_is_predicted(tmp_path):
    model = fitted_on_data("v_prediction", "paper")
    model.save_pretrained(tmp_path / "exits")
    again = ek.load(make("paper").release(), tmp_path / "exits", check_weights=False)
    assert again.predicts == "v_prediction"
    with pytest.raises(ConfigError, match="predicts 'v_prediction'"):
        ek.generate(again, Sampler("ddim", SHAPE, 2), seeds=1)


def test_the_class_of_a_task_is_no_task():
    with pytest.raises(ConfigError, match=r"task is the class Noise.*ek\.tasks\.Noise\(\.\.\.\)"):
        fit(make("relative"), [torch.randn(2, *SHAPE)], Noise, steps=1, progress=False)
