"""Blocks that hand one tensor on are found alike, and only where nothing has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.execution.block_call import BlockCall


class Shifted(nn.Module):
    """A map with two conditions, one of them written to if it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor, shift: Tensor, scale: float = 1.0, write: bool = False) -> Tensor:
        out = h + scale * torch.tanh(self.linear(h) + shift)
        if write:
            shift.mul_(1.1)
        return out


class Net(nn.Module):
    """Six blocks, called by position or by name."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Shifted() for _ in range(6))
        self.tail, self.named = nn.Linear(8, 8), named

    def forward(self, x: Tensor, t: Tensor, change: str = "") -> Tensor:
        shift, h = t.float()[:, None].expand(-1, 8) / 1000 + 0.0, x
        for i, block in enumerate(self.blocks):
            given = shift + 0.0 if change == "new" else shift
            more: dict[str, Any] = {"scale": float(f"0.{i + 1}")} if change == "plain" else {}
            if change == "block":
                more["write"] = True
            h = block(shift=given, h=h, **more) if self.named else block(h, given, **more)
            if change == "condition":
                shift.add_(1.0)
            if change == "hidden":
                h.mul_(0.5)
            if change == "detour":
                h = h * 0.5
        out: Tensor = self.tail(h)
        return out


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[BlockCall]:
    """The calls whose arguments were looked through."""
    seen: list[BlockCall] = []
    original = BlockCall._on_rows

    def noted(call: BlockCall, live: Any) -> Any:
        seen.append(call)
        return original(call, live)

    monkeypatch.setattr(BlockCall, "_on_rows", noted)
    return seen


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("change", "count"),
    # A block may write to a condition while it runs: seen at the next call, not at the first.
    [
        ("", 1),
        ("new", 5),
        ("plain", 5),
        ("condition", 5),
        ("hidden", 5),
        ("detour", 5),
        ("block", 5),
    ],
)
def test_a_chain_ends_where_something_is_new(
    looks: list[BlockCall], named: bool, change: str, count: int
) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(4, 8), torch.tensor([1, 300, 600, 900])
    net = Net(named).eval()
    model = ek.wrap(net, "relative", example_inputs=ek.Inputs(x, t, change))
    assert all(site.layout for gate in model._executor.gates.gates.values() for site in gate.sites)
    depths = (1, 7, 1, 7)
    model.policy = ek.policies.ScriptedExit(depths)
    looks.clear()
    with torch.no_grad():
        together = model(x, t, change)
        assert len(looks) == count
        for row, depth in enumerate(depths):
            model.policy = ek.policies.ScriptedExit((depth,))
            alone = model(x[row : row + 1], t[row : row + 1], change)
            if change != "block":  # which rows are there decides what is written
                torch.testing.assert_close(together[row : row + 1], alone)


def test_tensors_without_a_version_are_looked_through_each_time(looks: list[BlockCall]) -> None:
    x, t = torch.randn(4, 8), torch.tensor([1, 300, 600, 900])
    model = ek.wrap(Net(False).eval(), "relative", example_inputs=(x, t))
    model.policy = ek.policies.ScriptedExit((1, 7, 1, 7))
    with torch.no_grad():
        expected = model(x, t)
    looks.clear()
    with torch.inference_mode():
        torch.testing.assert_close(model(x, t), expected)
    assert len(looks) == 5


def test_rows_of_another_kind_are_no_link() -> None:
    """A block whose output has another dtype than its input is filled up as any other."""
    x, t = torch.randn(4, 8), torch.tensor([1, 300, 600, 900])
    model = ek.wrap(Net(False).eval(), "relative", example_inputs=(x, t))
    model.policy = ek.policies.ScriptedExit((1, 7, 1, 7))
    with torch.no_grad():
        expected = model(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t)
    torch.testing.assert_close(mixed.float(), expected, atol=0.1, rtol=0.1)
