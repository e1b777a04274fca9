"""Exits that were never fitted: rules let no row leave, schedules are obeyed with a warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.config import PRESETS
from exitkit.errors import NonFiniteWarning, UnfittedWarning
from exitkit.policies import CALM, FixedExit, LearningToExit, NeverExit, UncertaintyThreshold
from exitkit.training import ExitLoss
from tests.backbones import case
from tests.copies import copies

# Tokens, features whose shape changes, features of a CNN; own outputs, tails, shared ones, scalars.
KINDS = [
    *[(name, preset) for name in ("uvit", "unet") for preset in ("paper", "official", "relative")],
    ("uvit", "berxit"),
    ("unet", "calm"),
    ("timm_resnet", "relative"),
    ("uvit", "carried"),
    ("unet", "carried"),
]
RULES = [UncertaintyThreshold(0.6), LearningToExit(0.6), CALM("meta", 0.4)]


@copies
def wrapped(name: str, preset: str) -> tuple[ek.ExitModel, tuple[Any, ...]]:
    args, kwargs = case(name).inputs(3)
    assert not kwargs
    model = ek.wrap(case(name).make(), preset, example_inputs=args)
    assert isinstance(model, ek.ExitModel)
    return model, args


def depths(model: ek.ExitModel, args: tuple[Any, ...], policy: ek.policies.Policy) -> list[float]:
    """Depths of a step; a carried exit sees a full step before."""
    with torch.no_grad(), model.trajectory():
        model.policy = NeverExit()
        model(*args)
        model.policy = policy
        x, *more = args
        model(0.9 * x, *(t - 1 for t in more))
    found: list[float] = model.trace.depth[-1].tolist()
    return found


@pytest.mark.parametrize("policy", RULES, ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(
            *k, marks=[pytest.mark.slow] * (k in (("unet", "paper"), ("unet", "official")))
        )
        for k in KINDS
    ],
)
def test_rules_let_no_row_leave_until_heads_are_fitted(
    name: str, preset: str, policy: ek.policies.Policy
) -> None:
    model, args = wrapped(name, preset)
    end = len(model.exits) + 1
    assert depths(model, args, policy) == [end] * 3
    # Control: the heads say 1/2, and once that counts all rows leave at the first exit.
    model.heads.mark_fitted()
    assert depths(model, args, policy) == [1] * 3


def test_marked_outputs_alone_do_not_make_new_uncertainty_heads_heard() -> None:
    model, args = wrapped("uvit", "relative")
    model.heads.mark_fitted(uncertainty=False)
    assert depths(model, args, RULES[0]) == [len(model.exits) + 1] * 3
    assert model.heads.is_fitted


def test_nan_is_found_before_fitting_too() -> None:
    model, (x, t) = wrapped("uvit", "relative")
    model.policy = UncertaintyThreshold(0.5)
    x = x.clone()
    x[1] = torch.nan
    with pytest.warns(NonFiniteWarning, match=r"exit 1 .* for rows \[1\]"), torch.no_grad():
        found = model(x, t)
    expected = model.backbone(x, t)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and not found[1].isfinite().any()
    assert model.trace.depth.tolist() == [[len(model.exits) + 1] * 3]


def test_schedules_are_obeyed_with_one_warning() -> None:
    model, args = wrapped("uvit", "relative")
    model.policy = FixedExit(1)
    with pytest.warns(UnfittedWarning, match=r"never fitted: FixedExit.*ek\.fit"):
        model(*args)
    assert model.trace.depth.tolist() == [[1, 1, 1]]
    silently(model, args)


def test_nobody_is_warned_of_rules_of_never_exit_or_of_fitted_exits() -> None:
    for policy, fitted in ((NeverExit(), False), (RULES[0], False), (FixedExit(1), True)):
        model, args = wrapped("uvit", "relative")
        if fitted:
            model.heads.mark_fitted()
        model.policy = policy
        silently(model, args)


def silently(model: ek.ExitModel, args: tuple[Any, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(*args)


def test_new_carried_exits_are_not_ready_and_it_is_said() -> None:
    model, args = wrapped("uvit", "carried")
    with pytest.warns(UnfittedWarning, match="runs every row to the end"):
        assert depths(model, args, FixedExit(1)) == [2, 2, 2]
    model.heads.mark_fitted()
    assert depths(model, args, FixedExit(1)) == [1, 1, 1]


def lost(model: ek.ExitModel, args: tuple[Any, ...], step: int | None = None) -> Tensor:
    loss = ExitLoss(config=model.exit_config)
    return loss(model(*args, output_exits=True), torch.zeros_like(args[0]), step).total


def marks(model: ek.ExitModel) -> tuple[bool, set[bool]]:
    return model.heads.is_fitted, {head.is_fitted for head in model.heads.uncertainty}


@pytest.mark.parametrize(
    ("preset", "heard"), [("paper", True), ("relative", True), ("calm", True), ("pabee", False)]
)
def test_a_backward_through_the_loss_makes_them_fitted(preset: str, heard: bool) -> None:
    """Uncertainty heads only where the loss has a part for them."""
    model, args = wrapped("uvit", preset)
    total = lost(model, args)
    assert marks(model) == (False, {False}), "a forward fits nothing"
    total.backward()
    assert marks(model) == (True, {heard})
    if model.heads.final is not None:
        assert model.heads.final.is_fitted is heard


def test_a_step_on_the_full_output_alone_fits_no_exit() -> None:
    model, args = wrapped("uvit", "berxit")
    lost(model, args, step=0).backward()
    assert marks(model) == (False, {False})
    lost(model, args, step=1).backward()
    assert marks(model) == (True, {True})


def test_without_gradients_nothing_is_fitted() -> None:
    model, args = wrapped("uvit", "relative")
    with torch.no_grad():
        lost(model, args)
    assert marks(model) == (False, {False})
    assert PRESETS["relative"].loss.uncertainty_weight > 0
