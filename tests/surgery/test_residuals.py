"""What callers add outputs to: between calls by the dry run, behind the last one by two rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitkit.surgery.experiments import Finding
from exitkit.surgery.hidden_path import describe_calls
from exitkit.surgery.probe import probe
from exitkit.surgery.residuals import experiments, hypotheses, judged, with_base
from exitkit.surgery.spec import Call, Leaf
from exitkit.surgery.stages import find_stages
from tests.landing_networks import TOKENS, Chain, Outside, example


def described(net: nn.Module) -> list[Call]:
    seen = probe(net.eval(), example(TOKENS))
    flat = [i for g in find_stages(seen.base, seen.perturbed).groups for i in g.calls]
    return list(describe_calls(seen, flat).values())


@pytest.mark.parametrize("scale", [1.0, 0.5, 2**-0.5, -0.3])
def test_the_factor_is_read_off_the_dry_run(scale: float) -> None:
    torch.manual_seed(0)
    calls = described(Outside(scale=scale))
    assert [c.base for c in calls] == [0] * 10
    assert [c.scale for c in calls] == pytest.approx([scale] * 10, rel=1e-4)
    assert all(c.passes == () for c in calls)


def test_a_norm_in_front_shifts_the_base() -> None:
    torch.manual_seed(0)
    assert [c.base for c in described(Outside(apart=True))] == [None, 1] * 10


def test_blocks_that_add_by_themselves_have_no_base() -> None:
    torch.manual_seed(0)
    assert {c.base for c in described(Chain())} == {None}


def call(shape: tuple[int, ...] = (2, 8), out: tuple[int, ...] = (2, 8), **more: object) -> Call:
    given, made = Leaf("x", shape, "float32", 0), Leaf("", out, "float32", 0)
    return Call("block", 0, (given,), (made,), "x", "", (("", "x"),), **more)  # type: ignore[arg-type]


def test_hypotheses_are_what_is_thought_and_what_is_usual() -> None:
    assert hypotheses([call(), call()]) == [(0, 1.0)]
    assert hypotheses([call(), call(), call(base=1, scale=0.5)]) == [(1, 0.5), (0, 1.0)]
    assert hypotheses([call(), call(base=1)]) == [(0, 1.0)]  # nothing made the first call's input
    assert hypotheses([call(), call(), call(out=(2, 9))]) == []
    assert [(e.base, e.scale) for e in experiments([(0, 1.0), (0, 0.5)])] == [
        (0, None), (0, 1.0), (0, 0.5),
    ]  # fmt: skip


def moved(by: float, readers: set[int], behind: bool = True) -> Finding:
    state = torch.arange(8.0) * by
    return Finding(readers, behind, 1 + state, state)


@pytest.mark.parametrize(
    ("state", "output", "verdict"),
    [
        (moved(1.0, {5}), moved(1.0, {5}), ((0, 1.0), [])),
        (moved(0.0, set(), False), moved(1.0, {5}), (None, [])),
        # Half as much from the output: it is added with a factor of one half.
        (moved(1.0, {5}), moved(0.5, {5}), (None, [(0, 0.5)])),
        # A last layer of zeros: what enters it decides.
        (moved(1.0, set()), moved(1.0, set()), ((0, 1.0), [])),
        (moved(0.0, set(), False), moved(0.0, set(), False), None),
    ],
)
def test_equal_effects_are_a_sum(state: Finding, output: Finding, verdict: object) -> None:
    assert judged([(0, 1.0)], [state, output], 5) == verdict


def test_a_skipped_call_hands_on_what_its_base_asks_for() -> None:
    added = with_base(call(), (0, 0.5))
    assert (added.base, added.scale, added.passes) == (0, 0.5, ())
    assert with_base(added, None) == call()
    assert with_base(call(out=(2, 9)), None).passes == ()
