"""Blocks that change a list, dict or object that they are given are refused where anybody counts on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.testing import check_backbone

Work = Callable[[Tensor, Any], Any]


class Block(nn.Module):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.linear, self.work = nn.Linear(8, 8), work

    def forward(self, x: Tensor, box: Any) -> Any:
        return self.work(x + torch.tanh(self.linear(x)), box)


class Net(nn.Module):
    """Hands each of its blocks what `make` gives, or each the same; `caller` is what it does itself."""

    def __init__(self, work: Work, make: Callable[[Tensor], Any], caller: str = "") -> None:
        super().__init__()
        self.make, self.caller = make, caller
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([Block(work) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, box, total = x + t[:, None, None] / 1000, self.make(x), torch.zeros(())
        for block in self.blocks:
            if self.caller == "pops":
                x = x + 0.5 * box.pop()
            if self.caller == "appends":
                box.append(x)
            if self.caller == "reads":
                box = self.make(x)
            if self.caller == "goes on":
                x, box = block(x, box)
            else:
                x = block(x, box)
            if self.caller == "reads":
                total = total + (box["seen"] if isinstance(box, dict) else box.seen)
        return x + total


def states(x: Tensor) -> list[Tensor]:
    return [x * (i + 1) / 9 for i in range(4)]


def popped(x: Tensor, box: Any) -> Tensor:
    entry: Tensor = box.pop()
    return x + 0.5 * entry


def nested(x: Tensor, box: Any) -> Tensor:
    return popped(x, box["skips"])


def key_popped(x: Tensor, box: Any) -> Tensor:
    entry: Tensor = box.pop(max(box))
    return x + entry


def reversed_list(x: Tensor, box: Any) -> Tensor:
    box.reverse()
    return x + box[0]


def counted(x: Tensor, box: Any) -> Tensor:
    box["n"] += 1
    return x * box["n"] + box["c"]


def summed(x: Tensor, box: Any) -> Tensor:
    box["sum"] = box["sum"] + x
    return x + 0.1 * box["sum"]


def noted(x: Tensor, box: Any) -> Tensor:
    if isinstance(box, dict):
        box["seen"] = x
    else:
        box.seen = x
    return x


REFUSED: dict[str, tuple[Net, str]] = {
    "pop": (Net(popped, states), r"box\[3\] of blocks.0, box\[2\] of blocks.1"),
    "pop of a deque": (Net(popped, lambda x: deque(states(x))), r"box\[3\] of blocks.0"),
    "pop in a dict": (Net(nested, lambda x: {"skips": states(x)}), r"box.skips\[3\] of blocks.0"),
    "pop of a key": (Net(key_popped, lambda x: dict(enumerate(states(x)))), "box.3 of blocks.0"),
    "pop of numbers": (Net(popped, lambda x: [4.0, 3.0, 2.0, 1.0]), r"box\[3\] of blocks.0"),
    "reverse": (Net(reversed_list, states), r"box\[0\] of blocks.0"),
    "counter": (Net(counted, lambda x: {"n": 1, "c": x / 9}), "box.n of blocks.0"),
    "sum": (Net(summed, lambda x: {"sum": x / 9}), "box.sum of blocks.0"),
    "empty dict": (Net(noted, lambda x: {}, "reads"), "box.seen of blocks.0"),
    "empty object": (Net(noted, lambda x: SimpleNamespace(), "reads"), "box.seen of blocks.0"),
}


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, generator=generator), torch.tensor([700.0, 400.0, 90.0])


@pytest.mark.parametrize("name", REFUSED)
def test_changed_containers_that_somebody_counts_on_are_refused_by_name(name: str) -> None:
    net, where = REFUSED[name]
    with pytest.raises(UnsupportedBackboneError, match="write into a container.*" + where) as told:
        ek.wrap(net.eval(), "relative", example_inputs=example())
    assert all(word in str(told.value) for word in ("append, pop", "would be lost", "Adapter("))
    assert not any("forward" in vars(module) for module in net.modules())


def test_what_an_iterator_gives_is_gone_for_other_rows() -> None:
    net = Net(lambda x, box: x + next(box), lambda x: iter(states(x)))
    with pytest.raises(UnsupportedBackboneError, match="block 'blocks.0'.*in doubt: box of"):
        ek.wrap(net.eval(), "relative", example_inputs=example())


ACCEPTED: dict[str, Net] = {
    "reads": Net(lambda x, box: x + box[0], states),
    "reads a deque": Net(lambda x, box: x + box[-1], lambda x: deque(states(x))),
    "the caller pops": Net(lambda x, box: x, states, "pops"),
    "the caller appends": Net(lambda x, box: x + 0.5 * box[-1], lambda x: [x], "appends"),
    "returns what is left": Net(lambda x, box: (x + box[0], box[1:]), states, "goes on"),
    "returns the list": Net(lambda x, box: (popped(x, box), box), states, "goes on"),
    "notes what nobody reads": Net(noted, lambda x: {"c": x}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_other_containers_keep_rows_right(name: str) -> None:
    """Rows that stay are those of the bare network, whoever has left: what refused ones failed in."""
    net = ACCEPTED[name].eval()
    check_backbone(net, example(), config="relative")
