"""The calls that move with the noisy input, and the containers that they are in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.surgery.call_tree import CallTree
from exitkit.surgery.probe import probe
from exitkit.testing import check_backbone


class Wrapper(nn.Module):
    """Hands everything on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Net(nn.Module):
    """Two layers of a list under two wrappers, and a table that does not see the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(4, 8)
        self.body = Wrapper(Wrapper(nn.Sequential(nn.Linear(8, 8), nn.Tanh())))
        self.heads = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x + self.table(torch.ones(4)))
        for head in self.heads:
            x = x + head(x)
        return x


def tree() -> CallTree:
    torch.manual_seed(0)
    seen = probe(Net().eval(), torch.randn(2, 8))
    return CallTree(seen.base, seen.perturbed)


def paths(found: CallTree, calls: list[int]) -> list[str]:
    return [found.calls[i].path for i in calls]


def test_only_what_moves_with_the_input_is_in_the_tree() -> None:
    found = tree()
    assert paths(found, found.children(0)) == ["body", "heads.0", "heads.1"]
    assert "table" in [call.path for call in found.calls], "the control: it is called"


def test_wrappers_of_one_module_are_looked_through() -> None:
    found = tree()
    body, head, _ = found.children(0)
    assert len(found.children(body)) == 1
    assert found.opens(body) and not found.opens(head)


def test_containers_are_named_with_their_index() -> None:
    found = tree()
    assert found.container("heads.1", "") == ("heads", "heads.1")
    assert found.container("body", "") is None
    assert found.container("body.inner.inner.0", "body.inner.inner") == (
        "body.inner.inner",
        "body.inner.inner.0",
    )
    assert [found.visits(i) for i in found.children(0)] == [1, 1, 1]


class Experts(nn.Module):
    """A block of experts, of which only those are called that get tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 8)
        weight, chosen = self.gate(flat).softmax(-1).max(-1)
        made = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                made[chosen == number] = (
                    expert(flat[chosen == number]) * weight[chosen == number, None]
                )
        return x + made.view_as(x)


class Mixture(nn.Module):
    """Blocks of experts, with a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(Experts() for _ in range(4))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x + self.time(t[:, None].float() / 500 - 1)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_that_an_input_does_not_reach(seed: int) -> None:
    torch.manual_seed(seed)
    net, inputs = Mixture().eval(), (torch.randn(3, 2, 8), torch.tensor([900.0, 500.0, 100.0]))
    found = ek.inspect(net, example_inputs=inputs)
    assert [stage.path for stage in found.stages] == [f"blocks.{i}" for i in range(4)]
    check_backbone(net, inputs)
