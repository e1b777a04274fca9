"""Branches side by side are one stage, a list of blocks is no block, and a small tail is none either."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.testing import check_backbone
from tests.backbones import perturb


class Mix(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Fuse(nn.Module):
    """Takes in both branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)


class Branched(nn.Module):
    """Levels of two branches each, which start from the same tensor, and their fusion."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.chained = chained
        self.stem = nn.Linear(4, 16)
        self.lefts = nn.ModuleList(Mix(16) for _ in range(3))
        self.rights = nn.ModuleList(Mix(16) for _ in range(3))
        self.fusions = nn.ModuleList(Fuse(16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t[:, None, None] / 1000
        for left, right, fuse in zip(self.lefts, self.rights, self.fusions, strict=True):
            a = left(h)
            b = right(a if self.chained else h)
            h = fuse(a, b)
        return self.head(h)


class Nested(nn.Module):
    """Blocks in a list inside a list, as some diffusion transformers keep them; a light tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.first = nn.ModuleList([nn.ModuleList(Mix(16) for _ in range(3))])
        self.second = nn.ModuleList(Mix(16) for _ in range(2))
        self.tails = nn.ModuleDict({"out": nn.Sequential(nn.Linear(16, 4))})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t[:, None, None] / 1000
        for block in self.first[0]:
            h = block(h)
        for block in self.second:
            h = block(h)
        return self.tails["out"](h)


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 4), torch.tensor([900.0, 500.0, 20.0])


def paths(model: nn.Module) -> list[str]:
    return [b.path for b in ek.inspect(model, example_inputs=example()).boundaries]


def made(model: nn.Module) -> nn.Module:
    perturb(model, 0)
    return model.eval()


def test_rows_leave_behind_the_fusion_of_branches() -> None:
    model = made(Branched(chained=False))
    assert not [path for path in paths(model) if path.startswith("lefts")]
    check_backbone(model, example())


def test_a_chain_of_the_same_modules_is_no_set_of_branches() -> None:
    """The control: with the second fed by the first, every one is a point to leave at."""
    assert [path for path in paths(made(Branched(chained=True))) if path.startswith("lefts")]


def test_a_list_of_blocks_is_no_block() -> None:
    model = made(Nested())
    found = paths(model)
    assert found[:3] == ["first.0.0", "first.0.1", "first.0.2"]
    assert found[3:] == ["second.0", "second.1"]
    check_backbone(model, example())


@pytest.mark.parametrize("rows", [1, 4])
def test_the_light_tail_runs_for_every_row(rows: int) -> None:
    model = made(Nested())
    calls: list[int] = []
    model.tails["out"].register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    wrapped = ek.wrap(model, "relative", example_inputs=example())
    calls.clear()
    wrapped.policy = ek.policies.FixedExit(1)
    wrapped(torch.randn(rows, 5, 4), torch.full((rows,), 300.0))
    assert calls == [rows]
    assert wrapped.trace.block_rows["second.1"] == 0
