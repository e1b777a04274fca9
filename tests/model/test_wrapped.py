"""The object a user holds: what it hands on to the backbone, what it refuses, what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, ConfigError, ShapeError, TrajectoryError
from exitkit.policies import (
    Calibration,
    FixedExit,
    NeverExit,
    Policy,
    ScriptedExit,
    UncertaintyThreshold,
)
from tests.backbones import CASES, Case, TokenNet, case, prediction
from tests.copies import copies

every = pytest.mark.parametrize("one", CASES, ids=lambda c: c.id)


@copies
def wrap(one: Case, preset: Any = "relative", **more: Any) -> ek.ExitModel:
    args, kwargs = one.inputs(2)
    return ek.wrap(one.make(), preset, example_inputs=ek.Inputs(*args, **kwargs), **more)


# --------------------------------------------------------------------------- called like the backbone


@every
def test_it_returns_what_the_backbone_returns(one: Case) -> None:
    args, kwargs = one.inputs(3, seed=1)
    net, model = one.make(), wrap(one)
    with torch.no_grad():
        want, mine = net(*args, **kwargs), model(*args, **kwargs)
        assert type(mine) is type(want) and torch.equal(prediction(mine), prediction(want))
        rows = model.prediction_of(mine)
    assert torch.equal(rows[1:2].flatten(), one.select(want, 1).flatten())
    assert rows.shape[0] == 3
    model.policy = FixedExit(1)
    with torch.no_grad():
        early = model(*args, **kwargs)
    assert type(early) is type(want) and prediction(early).shape == prediction(want).shape
    assert not torch.equal(prediction(early), prediction(want)), "the control: nobody left"


def test_what_it_does_not_have_is_looked_up_on_the_backbone() -> None:
    one = case("dit")
    model = wrap(one)
    assert model.config is model.backbone.config and model.exit_config.preset == "relative"
    assert model.transformer_blocks is model.backbone.transformer_blocks
    assert model.dtype == torch.float32
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = model.no_such_name
    with pytest.raises(AttributeError, match="_hidden"):
        _ = model._hidden  # what is private is nobody else's
    model.backbone.own = 3
    assert model.own == 3


def test_modes_devices_and_types_are_the_backbones() -> None:
    for training in (True, False):
        net = TokenNet().train(training)
        model = ek.wrap(net, "relative", example_inputs=case("value_branch").inputs(2)[0])
        assert model.training is net.training is model.heads.training is training
        ek.unwrap(model)
    (image,), _ = case("timm_vit").inputs(2)
    double = case("timm_vit").make().double()
    model = ek.wrap(double, "relative", example_inputs=image.double())
    assert {p.dtype for p in model.exit_parameters()} == {torch.float64}


def test_parameters_of_the_heads_are_those_and_no_others() -> None:
    model = wrap(case("uvit"))
    own = {id(p) for p in model.exit_parameters()}
    assert own == {id(p) for p in model.parameters()} - {id(p) for p in model.backbone.parameters()}
    assert own


@pytest.mark.parametrize(
    ("loss", "share"), [(ek.LossConfig(), "<"), (ek.LossConfig(train_backbone=True), "100.0000")]
)
def test_what_trains_is_printed(
    loss: ek.LossConfig, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = wrap(case("uvit"), loss=loss)
    model.print_trainable_parameters()
    said = capsys.readouterr().out.strip()
    everything = sum(p.numel() for p in model.parameters())
    mine = sum(p.numel() for p in model.exit_parameters())
    trained = everything if share != "<" else mine
    assert said.startswith(f"trainable params: {trained:,} || all params: {everything:,} || ")
    assert (share in said) is (share != "<")


# --------------------------------------------------------------------------------------- policy


def test_a_policy_is_anything_that_a_run_can_follow() -> None:
    class Neither(Policy):
        name = "neither"

    model = wrap(case("uvit"))
    model.policy = NeverExit()
    for wrong, match in (
        (0.05, "model.policy: expected a Policy, got float.*UncertaintyThreshold"),
        (FixedExit, "expected a Policy, got "),
        (Neither(), "Neither"),
    ):
        with pytest.raises(ConfigError, match=match):
            model.policy = wrong
        assert model.policy == NeverExit(), "what was refused is used"
    model.policy = FixedExit(1)
    assert model.policy == FixedExit(1)


def test_the_configs_policy_is_the_first() -> None:
    config = ek.config.resolve_config("paper").model_copy(
        update={"policy": UncertaintyThreshold(0.2).to_dict()}
    )
    assert wrap(case("uvit"), config).policy == UncertaintyThreshold(0.2)


def test_a_calibration_belongs_to_the_policy_that_it_found() -> None:
    model = wrap(case("uvit"))
    assert model.calibration is None
    old, new = (Calibration(FixedExit(1), cost, 0.1, budget=0.5) for cost in (0.5, 0.4))
    other = Calibration(FixedExit(2), 0.6, 0.1, budget=0.6)
    model.calibrations += [old, new, other]
    assert model.calibration is None, "no policy was taken from any"
    model.policy = FixedExit(1)
    assert model.calibration is new
    model.policy = other.policy
    assert model.calibration is other
    model.policy = FixedExit(3)
    assert model.calibration is None


# ------------------------------------------------------------------------------------ accounts


def test_accounts_are_those_of_the_last_call_or_of_a_trajectory() -> None:
    one = case("uvit")
    model = wrap(one)
    (x, t), _ = one.inputs(3)
    assert model.trace.steps == 0 and str(model.trace) == "Trace: no call yet"
    with torch.no_grad():
        model.policy = ScriptedExit((1, 2, 9))
        model(x, t)
        assert model.trace.depth.tolist() == [[1, 2, 5]]
        with model.trajectory(steps=2) as trajectory:
            for step in range(2):
                trajectory.next_step()
                model(x, t - step)
            with pytest.raises(TrajectoryError, match="open already"), model.trajectory():
                pass
        assert model.trace.depth.tolist() == [[1, 2, 5]] * 2
        model.policy = FixedExit(1)
        model(x[:2], t[:2])
    assert model.trace.depth.tolist() == [[1, 1]]


def test_a_call_that_fails_leaves_the_accounts_of_the_one_before() -> None:
    one = case("uvit")
    model = wrap(one)
    (x, t), _ = one.inputs(3)
    with torch.no_grad():
        model(x, t)
        before = model.trace
        with pytest.raises(ShapeError):
            model(x[:0], t[:0])
    assert model.trace is before


# -------------------------------------------------------------------------------- looking inside


def test_outputs_of_all_exits_are_those_of_leaving_there() -> None:
    one = case("uvit")
    model = wrap(one)
    args, _ = one.inputs(3)
    with torch.no_grad():
        out = model(*args, output_exits=True)
        assert len(out.exits) == len(model.exits) == len(out.uncertainty)
        for depth, mine in enumerate(out.exits, 1):
            model.policy = FixedExit(depth)
            torch.testing.assert_close(mine, model(*args), rtol=0, atol=2e-5)


def test_all_exits_of_carried_heads_need_a_trajectory() -> None:
    one = case("uvit")
    with pytest.raises(TrajectoryError, match="no\noutput|no output"):
        wrap(one, "carried")(*one.inputs(2)[0], output_exits=True)


def test_hidden_states_are_recorded_and_replayed() -> None:
    one = case("uvit")
    model = wrap(one)
    args, _ = one.inputs(3)
    with torch.no_grad():
        kept = model.record(*args)
        want = model.backbone(*args)
        assert torch.equal(kept.output, want) and set(kept.hidden) == {1, 2, 3, 4}
        (end,) = model.replay(args, {}, [kept.final])
        (landed,) = model.replay(args, {}, [kept.landing[1]], exit=1)
        (early,) = model.replay(args, {}, [kept.hidden[1]])
        model.policy = FixedExit(1)
        left = model(*args)
    for mine in (end, landed):
        torch.testing.assert_close(mine, want, rtol=0, atol=2e-5)
    torch.testing.assert_close(early, left, rtol=0, atol=2e-5)
    assert not torch.allclose(early, want, atol=1e-3)


def test_compiled_blocks_answer_with_any_number_of_rows() -> None:
    one = case("uvit")
    model, bare = wrap(one), one.make()
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph.forward

    model.compile_blocks(backend=backend)
    with torch.no_grad():
        for rows in (2, 5):
            args, _ = one.inputs(rows)
            torch.testing.assert_close(model(*args), bare(*args))
    assert graphs, "the control: nothing was compiled"


# ------------------------------------------------------------------------------------- the end


def test_unload_is_unwrap() -> None:
    model = wrap(case("uvit"))
    assert not model.released
    assert model.unload() is model.backbone and model.released
    assert "forward" not in vars(model.backbone.mid_block)
    for ask in (model.release, lambda: model(*case("uvit").inputs(2)[0]), model.suspended):
        with pytest.raises(AlreadyWrappedError, match="undone by unwrap"):
            ask()


def test_a_model_is_not_half_made() -> None:
    """What fails while heads are made has left the backbone untouched."""
    net = case("uvit").make()
    args, _ = case("uvit").inputs(2)
    with pytest.raises(ConfigError):
        ek.wrap(net, "relative", example_inputs=args, policy={"name": "no such policy"})
    assert not any("forward" in vars(module) for module in net.modules())
    heads = sum(isinstance(m, nn.Module) for m in ek.wrap(net, example_inputs=args).heads.output)
    assert heads == 4


def test_it_stands_in_for_the_backbone_in_a_module() -> None:
    class Guided(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 2 * self.net(x, t)

    one = case("uvit")
    args, _ = one.inputs(2)
    with torch.no_grad():
        assert torch.equal(Guided(wrap(one))(*args), Guided(one.make())(*args))
