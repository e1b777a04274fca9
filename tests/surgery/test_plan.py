"""Plans against counts and orders made by hand, their verdicts on boundaries, and declared blocks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.modes.snapshot import Snapshot
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.plan import make_plan, plan_of
from exitkit.surgery.probe import probe
from exitkit.surgery.spec import Plan
from tests.backbones import CASES, Case, TokenNet, case
from tests.conftest import LARGE


@cache  # nobody can change a plan
def planned(one: Case, rows: int = 2, seed: int = 0, adapter: Adapter | None = None) -> Plan:
    args, kwargs = one.inputs(rows, seed)
    return make_plan(one.make(seed), ek.Inputs(*args, **kwargs), adapter)


@pytest.mark.parametrize(
    "one",
    [
        # Plans of the large ones are judged by all other tests; a second one of each is for the slow tests.
        pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.id in LARGE))
        for c in CASES
    ],
)
def test_the_plan_is_that_of_the_architecture(one: Case) -> None:
    """Neither weights, nor the example's values, nor its number of rows have a say."""
    assert planned(one) == planned(one, rows=5, seed=3)


def test_another_architecture_has_another_plan() -> None:
    names = ("uvit", "uvit_labels", "dit", "value_branch", "inplace_blocks")
    plans = [planned(case(name)) for name in names]
    assert all(a != b for i, a in enumerate(plans) for b in plans[i + 1 :])


# --------------------------------------------------------------------------------------------- work


@pytest.mark.parametrize(("depth", "dim"), [(2, 16), (5, 24)])
def test_macs_and_shares_have_a_closed_form(depth: int, dim: int) -> None:
    net = TokenNet(depth=depth, dim=dim).eval()
    plan = make_plan(net, case("value_branch").inputs(3)[0])
    stage = 64 * 2 * dim * 2 * dim + dim * dim
    glue = 2 * 64 * 3 * dim
    assert [s.macs for s in plan.stages] == [stage] * depth
    assert plan.macs == depth * stage + glue
    for b in plan.boundaries:
        assert b.share == pytest.approx((glue + b.stage * stage) / plan.macs)


def test_stages_of_unequal_work_have_shares_of_their_own() -> None:
    plan = planned(case("timm_resnet"))
    spent = [plan.macs - sum(s.macs for s in plan.stages[n:]) for n in range(1, 6)]
    assert [b.share for b in plan.boundaries] == pytest.approx([m / plan.macs for m in spent])
    assert plan.boundaries[-1].share == pytest.approx(1.0)


# ------------------------------------------------------------------------------------ boundaries


def test_the_end_of_the_network_is_no_exit() -> None:
    for one in CASES:
        boundaries = planned(one).boundaries
        assert [b.usable for b in boundaries] == [True] * (len(boundaries) - 1) + [False], one.id
        assert boundaries[-1].reason == "the end of the network"


@pytest.mark.parametrize(
    ("name", "mechanism", "lands"),
    [
        ("uvit", "tail", [True] * 5),
        ("timm_vit", "tail", [True] * 4),
        # The first level has the shape of the end, but between them are other ones.
        ("unet", "attached", [False, False, False, False, True]),
        ("timm_convnext", "attached", [False, False, False, True]),
    ],
)
def test_which_hidden_states_reach_the_tail(name: str, mechanism: str, lands: list[bool]) -> None:
    plan = planned(case(name))
    assert plan.mechanism == mechanism and [b.lands for b in plan.boundaries] == lands


def test_some_exits_reach_the_tail_and_others_do_not() -> None:
    class Split(nn.Module):
        """Merges tokens inside a block, as hierarchical transformers do."""

        def __init__(self, merge: bool) -> None:
            super().__init__()
            self.merge, self.linear = merge, nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = x + torch.tanh(self.linear(x))
            return x.unflatten(1, (-1, 2)).mean(dim=2) if self.merge else x

    class Tree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 16), nn.Linear(16, 5)
            self.blocks = nn.ModuleList(Split(at == 1) for at in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            out: Tensor = self.head(x.mean(dim=1))
            return out

    plan = make_plan(Tree().eval(), torch.randn(2, 8, 3))
    assert plan.mechanism == "mixed"
    assert [b.lands for b in plan.boundaries] == [False, True, True, True]


def test_mirrors_are_the_stages_that_take_the_skips() -> None:
    """Of a U-Net, by hand: behind a level of the way down, its partner on the way up goes on."""
    plan = planned(case("unet"))
    paths = [s.path for s in plan.stages]
    assert paths == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    # up_blocks.1 reads what down_blocks.0 has left, up_blocks.0 what down_blocks.1 has. Behind the middle
    # the partner of the level before goes on, since its own comes next anyway.
    assert [b.mirror for b in plan.boundaries] == [5, 4, 5, None, None]
    assert all(b.mirror is None for b in planned(case("value_branch")).boundaries)


@pytest.mark.parametrize(("name", "changes"), [("inplace_blocks", True), ("value_branch", False)])
def test_hidden_states_that_are_changed_in_place_are_known(name: str, changes: bool) -> None:
    assert planned(case(name)).in_place is changes


def test_a_block_that_runs_repeatedly_is_numbered() -> None:
    paths = [s.path for s in planned(case("shared_block")).stages]
    assert paths == ["block#0", "block#1", "block#2", "block#3"]


# --------------------------------------------------------------------------------- declarations


def test_declared_blocks_are_the_stages() -> None:
    for blocks, found in (
        (("blocks.*",), ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
        (("blocks.1", "blocks.3"), ["blocks.1", "blocks.3"]),
        # A star stands for one name, so that layers deeper inside are none.
        (("*.*.up",), ["blocks.0.up", "blocks.1.up", "blocks.2.up", "blocks.3.up"]),
    ):
        adapter = Adapter("mine", "-", blocks=blocks)
        args, _ = case("value_branch").inputs(2)
        net = case("value_branch").make()
        plan = plan_of(net, probe(net, args, adapter), adapter)
        assert [s.path for s in plan.stages] == found


@pytest.mark.parametrize(
    ("blocks", "match"), [(("block.*",), "match 0 calls.*blocks"), (("blocks.2",), "match 1 calls")]
)
def test_declared_blocks_that_are_not_there_are_refused(blocks: Any, match: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=rf"'mine' declares.*{match}"):
        planned(case("value_branch"), adapter=Adapter("mine", "-", blocks=blocks))


class Aside(TokenNet):
    """Two blocks that work on the timestep alone."""

    def __init__(self) -> None:
        super().__init__(depth=1)
        self.side = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for layer in self.side:
            emb = layer(emb)
        return self.blocks[0](tokens, emb)


def test_where_no_boundary_carries_an_exit_each_has_its_reason() -> None:
    args, _ = case("value_branch").inputs(2)
    with pytest.raises(UnsupportedBackboneError) as caught:
        make_plan(Aside().eval(), args, Adapter("aside", "-", blocks=("side.*",)))
    text = str(caught.value)
    assert "none of its 2 stages can carry an exit" in text
    assert "side.0: its output does not move with the noisy input" in text


def test_the_network_is_run_and_not_changed() -> None:
    one = case("uvit")
    net = one.make()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    held = {path: set(vars(module)) for path, module in net.named_modules()}
    make_plan(net, one.inputs(2)[0])
    assert held == {path: set(vars(module)) for path, module in net.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_plan_looks_at_the_state_of_a_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything tried on it puts back what was seen then; blocks alone have states of their own."""
    taken: list[nn.Module] = []
    real = Snapshot.of
    monkeypatch.setattr(Snapshot, "of", lambda model: taken.append(model) or real(model))
    one = case("dit")
    net = one.make()
    args, kwargs = one.inputs(2)
    make_plan(net, ek.Inputs(*args, **kwargs))
    assert sum(model is net for model in taken) == 1
