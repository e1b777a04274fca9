"""Blocks that read rows from elsewhere than their arguments are refused; those that note some are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.surgery.rows_alone import row_of
from exitkit.surgery.spec import Leaf
from exitkit.testing import check_backbone


class Block(nn.Module):
    cond: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x) + self.cond)


class Noting(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.cond = x.mean(1, keepdim=True)  # written before it is read: the block's own
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([block() for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = t[:, None, None] / 1000
        for block in self.blocks:
            block.cond = c
        h = x + c
        for block in self.blocks:
            h = block(h)
        return h


class Slicing(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x) + self.cond[: len(x)])  # right for row 0 alone


class Shared(Net):
    """Rows in an object that all blocks hold."""

    def __init__(self) -> None:
        super().__init__(Block)
        self.rows: dict[str, Tensor] = {}
        for block in self.blocks:
            block.rows = self.rows

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows["c"] = t[:, None, None] / 1000
        h = x
        for block in self.blocks:
            h = h + torch.tanh(block.linear(h)) if False else self.through(block, h)
        return h

    def through(self, block: nn.Module, h: Tensor) -> Tensor:
        return block(h)


class Reading(Block):
    rows: dict[str, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x) + self.rows["c"])


class SharedRows(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Reading() for _ in range(4)])
        for block in self.blocks:
            block.rows = self.rows


class PackedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, text: Tensor, lengths: list[int]) -> Tensor:
        parts = [part.mean(0) for part in text[0].split(lengths)]
        return x + torch.tanh(self.linear(x + torch.stack(parts)[:, None]))


class Packed(nn.Module):
    """Text of several lengths, one behind the other, as in PixArt's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([PackedBlock() for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        h = x + t[:, None, None] / 1000
        lengths = mask.sum(1).tolist()
        packed = text[mask][None]
        for block in self.blocks:
            h = block(h, packed, lengths)
        return h


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, generator=generator), torch.tensor([700.0, 400.0, 90.0])


@pytest.mark.parametrize(
    ("net", "where"), [(lambda: Net(Block), r"blocks\.0\.cond"), (SharedRows, r"rows\.c")]
)
def test_rows_in_attributes_are_named(net: Any, where: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=f"block 'blocks.0' .*in doubt: {where}"):
        ek.wrap(net().eval(), "relative", example_inputs=example())


def test_what_a_block_notes_for_itself_does_no_harm() -> None:
    check_backbone(Net(Noting).eval(), example())


@pytest.mark.parametrize("lengths", [(2, 5, 3), (5, 2, 3)])
def test_packed_rows_of_several_lengths_are_refused(lengths: tuple[int, ...]) -> None:
    text = torch.randn(3, 6, 8)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    with pytest.raises(UnsupportedBackboneError, match="block 'blocks.0'"):
        ek.wrap(Packed().eval(), "relative", example_inputs=(*example(), text, mask))


def test_one_of_two_rows() -> None:
    x = torch.arange(7)
    assert row_of(x, Leaf("", (7,), "int64", 0, fold=3, tail=1), 0).tolist() == [0, 1, 2, 6]
    assert row_of(x, Leaf("", (7,), "int64", 0, fold=3, tail=1), 1).tolist() == [3, 4, 5, 6]
    assert row_of(x, Leaf("", (7,), "int64", 0, fold=3, tail=1, tiled=True), 0).tolist() == [
        0,
        2,
        4,
        6,
    ]


def test_a_block_that_takes_the_first_of_the_rows_it_holds_is_named() -> None:
    with pytest.raises(
        UnsupportedBackboneError, match="block 'blocks.0' gives a row alone another"
    ):
        ek.wrap(Net(Slicing).eval(), "relative", example_inputs=example())


@dataclass
class State:
    h: Tensor


class Passing(nn.Module):
    """Takes the hidden state in a container; `how` it hands it on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(8, 8)

    def forward(self, state: Any) -> Any:
        h = state.h + torch.tanh(self.linear(state.h))
        if self.how == "made anew":
            return type(state)(h=h)
        state.h = h
        return state if self.how == "returned" else None


class Containers(nn.Module):
    """Goes on with what blocks return, or with the container that it gave them."""

    def __init__(self, kind: Callable[..., Any], how: str, reads_own: bool) -> None:
        super().__init__()
        self.kind, self.reads_own = kind, reads_own
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([Passing(how) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        state = self.kind(h=x + t[:, None, None] / 1000)
        for block in self.blocks:
            out = block(state)
            state = state if self.reads_own else out
        return state.h


@pytest.mark.parametrize("how", ["made anew", "returned"])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_dataclasses_between_blocks(how: str, preset: str) -> None:
    check_backbone(Containers(State, how, False).eval(), example(), config=preset)


@pytest.mark.parametrize("how", ["made anew", "returned"])
def test_rows_in_plain_objects_are_refused_by_name(how: str) -> None:
    net = Containers(SimpleNamespace, how, False)
    with pytest.raises(UnsupportedBackboneError, match=r"state.h of blocks.0, in a plain object"):
        ek.wrap(net.eval(), "relative", example_inputs=example())


def test_containers_that_the_caller_reads_its_result_from_are_refused_by_name() -> None:
    net = Containers(State, "returned", True)
    named = r"blocks write into a container that they are given \(state.h of blocks.0"
    with pytest.raises(UnsupportedBackboneError, match=named):
        ek.wrap(net.eval(), "relative", example_inputs=example())
    silent = Containers(State, "kept", True)
    with pytest.raises(UnsupportedBackboneError, match=r"'blocks.0' returns nothing and writes"):
        ek.wrap(silent.eval(), "relative", example_inputs=example())
