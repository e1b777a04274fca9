"""One forward: who runs which block and leaves with what, against loops over rows and hooks of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ShapeError
from exitkit.policies import (
    FULL,
    ExitRule,
    FixedExit,
    NeverExit,
    Schedule,
    ScriptedExit,
    Signals,
    StepInfo,
)
from tests.backbones import Case, case, prediction
from tests.copies import copies

ATOL = 2e-5
MECHANISMS = ("uvit", "sd3", "unet", "timm_resnet", "folded_frames", "tuple_blocks")


def each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backbone", [case(n) for n in names], ids=lambda c: c.id)


@copies
def wrap(backbone: Case, preset: str = "relative", **more: Any) -> ek.ExitModel:
    args, kwargs = backbone.inputs(2)
    example = ek.Inputs(*args, **kwargs)
    return ek.wrap(backbone.make(), preset, example_inputs=example, **more)


def drawn(rows: int, exits: int, seed: int) -> list[int]:
    return torch.randint(1, exits + 2, (rows,), generator=_generator(seed)).tolist()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Listed(ExitRule):
    """Lets go of rows as `ScriptedExit` does, but only when it is asked."""

    depths: tuple[int, ...]
    asked: list[tuple[int, list[int]]]
    name: ClassVar[str] = "listed"
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, signals: Signals) -> Tensor:
        self.asked.append((signals.exit, signals.rows.tolist()))
        return torch.tensor(self.depths)[signals.rows] == signals.exit


# ------------------------------------------------------------------------------ rows and work


@each("uvit", "unet", "dit")
def test_executed_rows_and_cost_follow_the_depths(backbone: Case) -> None:
    wrapped = wrap(backbone)
    exits, stages = len(wrapped.exits), backbone.stages
    depths = [1, exits + 1, 2, 1]
    wrapped.policy = ScriptedExit(tuple(depths))
    args, kwargs = backbone.inputs(len(depths))
    with torch.no_grad():
        wrapped(*args, **kwargs)
    last = {d: stages.index(wrapped.exits[d - 1].path) + 1 for d in range(1, exits + 1)}
    last[exits + 1] = len(stages)
    expected = {p: sum(last[d] > n for d in depths) for n, p in enumerate(stages)}
    assert dict(wrapped.trace.block_rows) == expected
    assert wrapped.trace.depth.tolist() == [depths]
    # Cost counts heads too, so it is the share of the blocks or slightly more.
    cost = [*(e.cost for e in wrapped.exits), 1.0]
    assert wrapped.trace.cost == pytest.approx(sum(cost[d - 1] for d in depths) / len(depths))
    assert 0 < cost[0] < cost[1] < 1


@contextmanager
def rows_seen(net: nn.Module, stages: tuple[str, ...], batch: int) -> Iterator[Counter[str]]:
    """Rows that reach a module inside each block, counted by torch's own hooks on linear layers."""
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        for path in dict.fromkeys(stages):
            block = net.get_submodule(path)
            inner = next(m for m in block.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm))
            hook = inner.register_forward_hook(
                lambda module, args, output, path=path: seen.update({path: len(args[0])})
            )
            stack.callback(hook.remove)
        yield seen


@each("uvit", "unet", "timm_vit")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_trace_says_ran_is_what_ran(backbone: Case, seed: int) -> None:
    wrapped = wrap(backbone)
    args, kwargs = backbone.inputs(6, seed)
    with torch.no_grad():
        wrapped(*args, **kwargs)  # shapes are known afterwards, no row runs for them
        wrapped.policy = ScriptedExit(tuple(drawn(6, len(wrapped.exits), seed)))
        with rows_seen(wrapped.backbone, backbone.stages, 6) as seen:
            wrapped(*args, **kwargs)
    assert +wrapped.trace.block_rows == +seen
    assert any(count < 6 for count in seen.values()), "the control: everybody ran everywhere"


@each(*MECHANISMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_row_is_that_row_alone_whoever_decides(backbone: Case, seed: int) -> None:
    """A schedule and a rule that say the same do the same, and a loop over single rows does, too."""
    wrapped = wrap(backbone)
    depths = tuple(drawn(5, len(wrapped.exits), 10 + seed))
    args, kwargs = backbone.inputs(5, seed)
    rule = Listed(depths, [])
    with torch.no_grad():
        found = []
        for policy in (ScriptedExit(depths), rule):
            wrapped.policy = policy
            found.append(prediction(wrapped(*args, **kwargs)))
            assert wrapped.trace.depth.tolist() == [list(depths)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=ATOL)
        for row, depth in enumerate(depths):
            args, kwargs = backbone.rows([row], seed)
            alone = {}
            for at in (depth, depth % (len(wrapped.exits) + 1) + 1):
                wrapped.policy = FixedExit(at if at <= len(wrapped.exits) else FULL)
                alone[at] = backbone.select(wrapped(*args, **kwargs), 0)
            mine = backbone.select(found[0], row)
            torch.testing.assert_close(mine, alone.pop(depth), rtol=0, atol=ATOL)
            # The control: another depth is another output, so the test can fail.
            assert (mine - next(iter(alone.values()))).abs().max() > ATOL
    # A rule is asked about those who are still there, and about nobody once all have left.
    left: set[int] = set()
    for exit, rows in rule.asked:
        assert rows == [r for r in range(5) if r not in left]
        left |= {r for r in rows if depths[r] == exit}
    deepest = max(depths)
    assert [exit for exit, _ in rule.asked] == list(range(1, min(deepest, len(wrapped.exits)) + 1))
    assert wrapped.trace.decisions == 0  # of the last run, under a schedule


def test_while_nothing_happens_blocks_get_the_very_arguments() -> None:
    """Selecting all rows would change strides, and with them last bits."""
    backbone = case("uvit")
    wrapped = wrap(backbone)
    args, _ = backbone.inputs(3)
    handed: list[int] = []
    made: list[int] = []
    for path in backbone.stages:
        block = wrapped.backbone.get_submodule(path)
        block.register_forward_pre_hook(lambda module, args: handed.append(id(args[0])))
        gate = block.forward
        inner = gate.original

        def original(*args: Any, inner: Any = inner) -> Any:
            made.append(id(args[0]))
            return inner(*args)

        gate.original = original
    with torch.no_grad():
        wrapped(*args)
        handed.clear(), made.clear()
        for policy in (NeverExit(), FixedExit(3)):
            wrapped.policy = policy
            wrapped(*args)
            count = 5 if isinstance(policy, NeverExit) else 3
            assert made[:count] == handed[:count]
            handed.clear(), made.clear()


# ------------------------------------------------------------------------- schedules and ends


@dataclass(frozen=True)
class Told(Schedule):
    """Says what it was made with."""

    depth: Any
    seen: list[StepInfo]
    name: ClassVar[str] = "told"

    def depths(self, info: StepInfo) -> Tensor:
        self.seen.append(info)
        return torch.as_tensor(self.depth)


def test_a_schedule_is_asked_once_and_told_what_is_known() -> None:
    backbone = case("uvit")
    wrapped = wrap(backbone)
    (x, t), _ = backbone.inputs(2)
    policy = Told((1, 9), [])
    wrapped.policy = policy
    with torch.no_grad():
        wrapped(x, t)
        with wrapped.trajectory(steps=7):
            wrapped(x, t)
    outside, inside = policy.seen
    assert (outside.batch, outside.exits) == (2, len(wrapped.exits))
    assert torch.equal(outside.timestep, t.float()) and outside.step is None is outside.steps
    assert (inside.step, inside.steps) == (0, 7)
    assert wrapped.trace.depth.tolist() == [[1, len(wrapped.exits) + 1]]


def test_depths_of_another_batch_are_refused() -> None:
    backbone = case("uvit")
    wrapped = wrap(backbone)
    wrapped.policy = Told((1, 2, 3), [])
    with pytest.raises(
        ShapeError, match=r"Told gives depths of shape \(3,\) for a batch of 2 rows"
    ):
        wrapped(*backbone.inputs(2)[0])
    assert not wrapped.trace.calls
    with torch.no_grad():
        wrapped(*backbone.inputs(3)[0])
    assert wrapped.trace.depth.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("watched", [False, True])
def test_a_forward_that_nobody_needs_any_more_ends(watched: bool) -> None:
    """Exits that make their own prediction: once all have left, nothing behind them runs."""
    backbone = case("unet")
    wrapped = wrap(backbone)
    net = wrapped.backbone
    tail: list[int] = []
    net.conv_out.register_forward_pre_hook(lambda *_: tail.append(1))
    if watched:  # a hook that waits behind a block must see it return
        net.down_blocks[0].register_forward_hook(lambda *_: None)
    args, kwargs = backbone.inputs(3)
    found = []
    with torch.no_grad():
        wrapped.policy = FixedExit(1)
        found.append(wrapped(*args, **kwargs).sample)
        assert tail == [1], "the form of the output has to be seen once"
        found.append(wrapped(*args, **kwargs).sample)
        assert tail == ([1, 1] if watched else [1])
        wrapped.policy = ScriptedExit((1, 1, 9))  # one stays
        found.append(wrapped(*args, **kwargs).sample)
        assert len(tail) == (3 if watched else 2)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0][:2], found[2][:2])
    assert not torch.equal(found[0][2], found[2][2])


@each("uvit", "unet")
def test_gradients_are_those_of_a_loop_over_rows(backbone: Case) -> None:
    wrapped = wrap(backbone)
    depths = (1, 9, 2)
    args, kwargs = backbone.inputs(3)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    wrapped.policy = ScriptedExit(depths)
    together = torch.autograd.grad(
        prediction(wrapped(*args, **kwargs)).square().sum(), parameters, allow_unused=True
    )
    sums = [torch.zeros_like(p) for p in parameters]
    for row, depth in enumerate(depths):
        args, kwargs = backbone.rows([row])
        wrapped.policy = ScriptedExit((depth,))
        loss = prediction(wrapped(*args, **kwargs)).square().sum()
        for total, grad in zip(
            sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if grad is not None:
                total += grad
    assert any(bool(total.any()) for total in sums)
    for mine, total in zip(together, sums, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(total) if mine is None else mine, total, rtol=2e-3, atol=1e-4
        )
