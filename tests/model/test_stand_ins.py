"""Copies of networks share everything but what stands in the place of other blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.model.stand_ins import given, names_of, rebuilt, shared_copy, skipped, ungated
from exitkit.surgery.spec import Call, Leaf


class Net(nn.Module):
    """Two layers, one below a container."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.deep = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.deep(self.first(x))
        return out


def test_only_the_way_to_a_change_is_copied() -> None:
    net, x = Net(), torch.randn(3, 2)
    before = net(x)
    changed: list[nn.Module] = []
    twin: Any = shared_copy(net, {"deep.0": changed.append})
    assert twin is not net and twin.deep is not net.deep and twin.deep[0] is not net.deep[0]
    assert twin.first is net.first and twin.deep[1] is net.deep[1]
    assert changed == [twin.deep[0]] and twin.deep[0].weight is net.deep[0].weight
    assert list(twin.state_dict()) == list(net.state_dict()) and torch.equal(twin(x), before)
    twin.deep[0].forward = lambda x: 0 * x
    assert not torch.equal(twin(x), before) and torch.equal(net(x), before)
    assert shared_copy(net, {"other": changed.append}, "here") is net


def test_forwards_of_somebody_else_are_refused() -> None:
    net = Net()
    ungated(net)
    net.forward = net.forward  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"forward of its own over Net.*Take it off"):
        ungated(net)


def leaf(path: str, *shape: int, axis: int | None = 0) -> Leaf:
    return Leaf(path, shape, "float32", axis=axis)


def test_what_a_skipped_block_hands_on() -> None:
    x, skip = torch.randn(5, 4, 16, 16), torch.randn(5, 1)
    call = Call(
        path="down",
        nth=0,
        inputs=(leaf("x", 2, 4, 8, 8), leaf("skip", 2, 1)),
        outputs=(leaf("[0]", 2, 8, 4, 4), leaf("[1][0]", 2, 1), leaf("[1][1]", 2, 3)),
        hidden_in="x",
        hidden_out="[0]",
        passes=(("[1][0]", "skip"),),
        skeleton=(None, [None, None]),
    )
    made = skipped(call, ["x", "skip"], (x,), {"skip": skip})
    assert made[0].shape == (5, 8, 8, 8) and not made[0].any()
    assert made[1][0] is skip and made[1][1].shape == (5, 3)
    added = Call("a", 0, (leaf("x", 2, 4, 8, 8),), (leaf("", 2, 4, 8, 8),), "x", "", (), base=0)
    assert skipped(added, ["x"], (x,), {}).shape == x.shape


def test_arguments_by_place_and_by_name() -> None:
    names = names_of(Net().forward)
    assert names == ["x"]
    assert given("y", ["x", "y"], (1, 2), {}) == 2 and given("y", ["x", "y"], (1,), {"y": 3}) == 3
    one = torch.ones(1)
    assert given("y[1]", ["x", "y"], (1, [0, one]), {}) is one


def test_values_are_rebuilt_in_their_types() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    value = (one, [two, None], {"a": one})
    made = rebuilt(value, {"[1][0]": one, "[2].a": two})
    assert made[0] is one and made[1] == [one, None] and made[2]["a"] is two
    assert type(made) is tuple and rebuilt(one, {"": two}) is two
