"""Policies with a memory: what they keep from step to step, for whom, and when it is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import TrajectoryError
from exitkit.policies import (
    FULL,
    FirstBlockSimilarity,
    FixedExit,
    Interval,
    LearningToExit,
    NeverExit,
    Oracle,
    Policy,
    StepSchedule,
)
from exitkit.testing import SignalTable
from tests.backbones import TokenNet, case, perturb
from tests.copies import copies
from tests.policies.families_of_one_step import OF_ONE_STEP
from tests.policies.families_over_time import OVER_TIME
from tests.policies.spy import between, spied

TIMES = (900.0, 650.0, 400.0, 150.0)
BATCH = 4
Calls = list[tuple[Tensor, Tensor]]


def calls(seed: int, batch: int = BATCH, side: int = 8) -> Calls:
    """Inputs of four steps that change a little, each row by another amount."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, side, side, generator=generator)
    by = torch.linspace(0.02, 0.5, batch).view(-1, 1, 1, 1)
    made = []
    for t in TIMES:
        made.append((x, torch.full((batch,), t)))
        x = x + by * torch.randn(x.shape, generator=generator)
    return made


@copies
def wrapped(name: str, preset: str = "carried", **options: Any) -> ek.ExitModel:
    model = ek.wrap(case(name).make(), preset, example_inputs=calls(0)[0], **options)
    assert isinstance(model, ek.ExitModel)
    model.heads.mark_fitted()
    return model


def run(model: ek.ExitModel, policy: Policy, steps: Calls) -> list[list[int]]:
    model.policy = policy
    with torch.no_grad(), model.trajectory(steps=len(steps)):
        for args in steps:
            model(*args)
    return [[int(d) for d in row] for row in model.trace.depth]


def similarities(table: SignalTable, depth: int) -> list[FirstBlockSimilarity]:
    """Thresholds in the middle of how much the first blocks' work changes from step to step."""
    added = (table.hidden[:, depth - 1] - table.entry).flatten(2)
    change = (added[1:] - added[:-1]).abs().mean(dim=2) / added[:-1].abs().mean(dim=2)
    return [
        FirstBlockSimilarity(x * scale, accumulate, depth=depth)
        for x in between(change)
        for accumulate, scale in ((False, 1.0), (True, 1.0), (True, 2.0))
    ]


@pytest.mark.parametrize(
    ("name", "preset"), [("uvit", "carried"), ("value_branch", "carried"), ("uvit", "relative")]
)
def test_four_steps_of_a_model_equal_the_walk_over_its_signals(name: str, preset: str) -> None:
    steps = calls(1)
    model = wrapped(name, preset, exits=(1, 2))
    table = spied(model, steps, judged=False).table(len(steps))
    settings = [*similarities(table, 1), *similarities(table, 2)]
    seen = set()
    for policy in settings:
        depths = run(model, policy, steps)
        assert depths == table.walk(policy).tolist(), policy
        seen |= {(policy.depth, tuple(row)) for row in depths}
    # Some rows leave while others stay, at both exits.
    mixed = {depth for depth, row in seen if len(set(row)) > 1}
    assert mixed == {1, 2}
    for plan in (Interval(2), Interval(3, 2), Interval(1), StepSchedule((FULL, 1, 2, FULL))):
        assert run(model, plan, steps) == table.walk(plan).tolist(), plan


def test_branches_of_guidance_keep_states_of_their_own() -> None:
    model = wrapped("uvit")
    first, second = calls(1), calls(2)
    tables = [spied(model, steps, judged=False).table(4) for steps in (first, second)]
    both = [call for pair in zip(first, second, strict=True) for call in pair]
    differ = False
    for policy in (*similarities(tables[0], 1), Interval(2), Interval(3)):
        depths = run(model, policy, both)
        alone = [table.walk(policy).tolist() for table in tables]
        assert [depths[::2], depths[1::2]] == alone, policy
        differ |= alone[0] != alone[1]
    assert differ  # or one state for both branches would pass


def test_state_is_dropped_when_it_no_longer_fits() -> None:
    model = wrapped("value_branch")
    x, large = calls(1)[0][0], calls(1, side=16)[0][0]
    model.policy = FirstBlockSimilarity(1e3)  # leaves wherever there is something to compare with
    full, left = 2, 1
    story = [
        (x, 900.0, full),
        (x, 800.0, left),
        (x[:2], 700.0, full),  # another batch
        (x[:2], 600.0, left),
        (large, 500.0, full),  # another resolution
        (large, 400.0, left),
        (large, 950.0, full),  # time jumps back up: another generation
        (large, 900.0, left),
        (large, 900.0, full),  # a second branch has no past in this step
        (large, 800.0, left),
        (large, 800.0, left),
    ]
    with torch.no_grad(), model.trajectory():
        for place, (noisy, t, depth) in enumerate(story):
            model(noisy, torch.full((len(noisy),), t))
            assert model.trace.calls[-1].depth.tolist() == [depth] * len(noisy), place
    with torch.no_grad(), model.trajectory():
        model(large, torch.full((BATCH,), 700.0))
        assert model.trace.depth.tolist() == [[full] * BATCH]  # nothing survives its trajectory


def test_an_interval_begins_anew_with_a_new_generation() -> None:
    model = wrapped("value_branch")
    x, model.policy = calls(1)[0][0], Interval(3)
    with torch.no_grad(), model.trajectory():
        for t in (900.0, 600.0, 300.0, 200.0, 950.0, 700.0):
            model(x, torch.full((BATCH,), t))
    assert model.trace.depth[:, 0].tolist() == [2, 1, 1, 2, 2, 1]


def test_what_one_policy_kept_means_nothing_to_another() -> None:
    model = wrapped("value_branch", exits=(1, 2))
    x, full = calls(1)[0][0], 3
    story: list[tuple[Policy, int]] = [
        # Thresholds so high that a row leaves wherever there is something to compare with.
        (FirstBlockSimilarity(1e3), full),
        (FirstBlockSimilarity(1e3), 1),
        (FirstBlockSimilarity(1e4), 1),  # the same policy at another setting
        (FirstBlockSimilarity(1e4, depth=2), full),  # what two blocks add is not what one adds
        (FirstBlockSimilarity(1e4, depth=2), 2),
        (FirstBlockSimilarity(1e4, True, depth=2), full),
        (Interval(4, 2), 2),
        (FirstBlockSimilarity(1e4, True, depth=2), full),  # the step before was not seen
        (FirstBlockSimilarity(1e4, True, depth=2), 2),
    ]
    with torch.no_grad(), model.trajectory():
        for step, (policy, depth) in enumerate(story):
            model.policy = policy
            model(x, torch.full((BATCH,), 900.0 - step))
            assert model.trace.depth[-1].tolist() == [depth] * BATCH, step


class Widening(TokenNet):
    """The first block widens the tokens, and the next one changes its input in place."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.blocks = nn.ModuleList(map(_Wide, (16, 24, 24, 24)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 3)

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class _Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(F.leaky_relu_(x, 0.5)))


@pytest.mark.filterwarnings("ignore:.*nothing moves with 't'")  # of which it makes no use
def test_what_is_kept_is_safe_from_blocks_that_change_their_input() -> None:
    torch.manual_seed(0)
    steps = calls(1)
    model = ek.wrap(perturb(Widening().eval()), "relative", example_inputs=steps[0], exits=(1,))
    assert model.plan.in_place
    same = [(steps[0][0], t) for _, t in steps]
    # The same input four times: nothing changes, however closely one looks.
    assert run(model, FirstBlockSimilarity(1e-6), same) == [[2] * BATCH, *[[1] * BATCH] * 3]


@pytest.mark.parametrize("policy", [FirstBlockSimilarity(0.1), Interval(2), StepSchedule((1, 2))])
def test_outside_a_trajectory_a_policy_with_a_memory_says_what_to_open(policy: Policy) -> None:
    x, t = calls(1)[0]
    model = wrapped("value_branch", "relative")
    model.policy = policy
    named = rf"^{type(policy).__name__} .*with model\.trajectory\((steps=2)?\):"
    with pytest.raises(TrajectoryError, match=named):
        model(x, t)
    model.policy = NeverExit()
    assert torch.equal(model(x, t), model.backbone(x, t))  # nothing is left of the failed call


def test_saving_keeps_each_policy(tmp_path: Path) -> None:
    model = wrapped("value_branch", "relative", exits=(1,))
    found = {type(f.policies[-1]): f.policies[-1] for f in (*OF_ONE_STEP, *OVER_TIME)}
    # Those that speak of each exit, for exits that there are.
    found |= {LearningToExit: LearningToExit(0.5, (0.3,)), Oracle: Oracle(0.1, costs=(0.5,))}
    backbone = case("value_branch").make()
    for name, policy in enumerate([*found.values(), FixedExit(FULL)]):
        model.policy = policy
        folder = tmp_path / str(name)
        model.save_pretrained(folder)
        again = ek.ExitModel.from_pretrained(backbone, folder, example_inputs=calls(0)[0])
        assert again.policy == policy and type(again.policy) is type(policy)
        ek.unwrap(again)
