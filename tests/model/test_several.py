"""Several denoisers held as one: policy, trajectories, accounts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.errors import ConfigError, TrajectoryError
from exitkit.execution.trajectory import trajectory_of
from exitkit.model import ExitModels
from exitkit.policies import FixedExit, Interval, NeverExit
from tests.backbones import case
from tests.copies import copies


@copies
def wrapped(exits: tuple[int, ...]) -> ek.ExitModel:
    one = case("uvit")
    model = ek.wrap(one.make(), "relative", example_inputs=one.inputs(2)[0], exits=exits)
    assert isinstance(model, ek.ExitModel)
    model.heads.mark_fitted()
    return model


@pytest.fixture
def models() -> ExitModels:
    """Two residual networks, one with two exits and one with one."""
    return ExitModels({"high": wrapped((1, 2)), "low": wrapped((1,))})


def test_it_is_a_mapping_and_a_module(models: ExitModels) -> None:
    assert list(models) == ["high", "low"] and len(models) == 2 and "low" in models
    assert [name for name, _ in models.items()] == ["high", "low"]
    assert isinstance(models["low"], ek.ExitModel)
    assert isinstance(models.backbone, nn.ModuleDict)
    assert models.backbone["low"] is models["low"].backbone
    assert models.exits == models["low"].exits, "what all can do"
    with pytest.raises(ConfigError, match="called by their pipeline"):
        models(torch.zeros(1))


def test_one_policy_for_all(models: ExitModels) -> None:
    assert models.policy == models["low"].policy
    models.policy = FixedExit(1)
    assert models.policies == {"high": FixedExit(1), "low": FixedExit(1)}
    models.policies = {"low": Interval(2)}
    with pytest.raises(ConfigError, match=r"different policies.*low: Interval\(interval=2\)"):
        _ = models.policy


def test_their_trajectories_are_open_together(models: ExitModels) -> None:
    with models.trajectory(5) as opened:
        steps = {name: trajectory_of(model).steps for name, model in models.items()}
        assert steps == {"high": 5, "low": 5} and opened.trace is None
        with pytest.raises(TrajectoryError), models.trajectory():
            pass
        assert trajectory_of(models["high"]) is not None
    assert trajectory_of(models["high"]) is None


def test_accounts_are_those_of_all(models: ExitModels) -> None:
    one = case("uvit")
    given = ek.Inputs.of(one.inputs(2)[0])
    models.policy = FixedExit(1)
    with torch.no_grad(), models.trajectory(2) as opened:
        for name in ("low", "high"):
            models[name](*given.args, **given.kwargs)
            for trajectory in opened.opened.values():
                trajectory.end_step()
    trace = opened.trace
    assert trace is not None and [call.step for call in trace.calls] == [0, 1]
    assert trace.macs == sum(model.trace.macs for model in models.values())
    assert trace.cost == models.trace.cost and trace.exits == 2
    models.policy = NeverExit()
    with torch.no_grad(), models.trajectory(1) as opened:
        models["low"](*given.args, **given.kwargs)
    assert opened.trace.depth.unique().tolist() == [2], "its own end"


def test_suspended_together(models: ExitModels) -> None:
    with models.suspended():
        assert not any(
            "forward" in vars(m) for net in models.backbone.values() for m in net.modules()
        )
    assert all(any("forward" in vars(m) for m in net.modules()) for net in models.backbone.values())


def test_words_and_notes(models: ExitModels) -> None:
    text = models.summary()
    assert text.index("high: ") < text.index("low: ")
    assert models.calibration is None and models.fitted is None and models.calibrations == []
