"""Patch embeddings and token merges between blocks carry no exit; they are skipped with what follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.testing import check_backbone


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x + x.mean(1, keepdim=True))))


class Merge(nn.Module):
    """Two neighbouring tokens become one."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.norm, self.project = nn.LayerNorm(2 * given), nn.Linear(2 * given, made)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x.unflatten(1, (-1, 2)).flatten(2)))


class Patches(nn.Module):
    def __init__(self, made: int) -> None:
        super().__init__()
        self.project = nn.Conv1d(3, made, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).transpose(1, 2)


class Hierarchy(nn.Module):
    """A list of embeddings and a list of levels, each of two blocks, as in hierarchical Transformers."""

    def __init__(self, widths: Sequence[int] = (8, 8, 16)) -> None:
        super().__init__()
        merges = [Merge(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.embeds = nn.ModuleList([Patches(widths[0]), *merges])
        self.levels = nn.ModuleList(
            nn.ModuleList(Block(width) for _ in range(2)) for width in widths
        )
        self.out = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for embed, level in zip(self.embeds, self.levels, strict=True):
            x = embed(x)
            for block in level:
                x = block(x)
        return self.out(x.mean(1))


def built() -> tuple[Hierarchy, Tensor]:
    torch.manual_seed(0)
    return Hierarchy().eval(), torch.randn(3, 3, 16)


def test_no_exit_behind_an_embedding_or_a_merge() -> None:
    net, x = built()
    plan = ek.inspect(net, example_inputs=x)
    ends = [stage.calls[-1].path for stage in plan.stages]
    assert ends == [f"levels.{i}.{j}" for i in range(3) for j in range(2)]
    rejected = dict(plan.rejected)
    assert rejected["embeds.0"] == "changes the resolution in front of the blocks"
    assert rejected["embeds.1"] == "changes the resolution: a part of the stage behind it"
    # It is skipped with the block that works on what it makes.
    assert [c.path for c in plan.stages[2].calls] == ["embeds.1", "levels.1.0"]


@pytest.mark.parametrize("preset", ["relative", "paper"])
def test_rows_keep_apart_over_merges(preset: str) -> None:
    net, x = built()
    check_backbone(net, x, config=preset)


def test_a_stack_of_single_layers_keeps_all_of_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv1d(3, 3, 3, 2, 1) for _ in range(4))).eval()
    plan = ek.inspect(net, example_inputs=torch.randn(3, 3, 32))
    assert plan.num_stages == 4 and not plan.rejected


def test_a_projection_that_only_widens_is_no_change_of_resolution() -> None:
    torch.manual_seed(0)
    widen = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16))
    net = nn.Sequential(Block(8), widen, Block(16), Block(16)).eval()
    plan = ek.inspect(net, example_inputs=torch.randn(3, 6, 8))
    assert plan.num_stages == 4
