"""Whatever a forward leaves behind on a network, inspect, wrap and an error on the way take it back."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ExitKitError, UnsupportedBackboneError
from exitkit.modes import snapshot, state_records
from exitkit.modes.snapshot import Snapshot, is_kept, kept_state, preserved_state
from tests.mishaps import Mishap, raising_at_call


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Slots:
    __slots__ = ("empty", "seen")

    def __init__(self) -> None:
        self.seen = 0


@dataclass(frozen=True)
class Frozen:
    log: list[Any] = field(default_factory=list)


class Net(nn.Module):
    """Calls `leave(net, x)` before its blocks and in the middle of them."""

    shared: Any = 0

    def __init__(self, prepare: Callable[[Net], None], leave: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([Block() for _ in range(3)])
            self.register_buffer("table", torch.arange(8.0))
        self._leave = leave
        prepare(self)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x + t[:, None, None] / 1000
        for block in self.blocks:
            self._leave(self, h)
            h = block(h)
        return h


def counting(net: Net) -> None:
    seen = {"calls": 0}
    total = 0

    def hook(*_: Any) -> None:
        nonlocal total
        seen["calls"] += 1
        total += 1

    net.blocks[1].register_forward_pre_hook(hook)
    net.told = lambda: (seen["calls"], total)  # type: ignore[assignment]


def attribute(name: str, make: Callable[[], Any]) -> Callable[[Net], None]:
    return lambda net: setattr(net, name, make())


def add_in_place(net: Net, x: Tensor) -> None:
    net.kept.add_(1)


LEAVERS: dict[str, tuple[Callable[[Net], None], Callable[[Net, Tensor], Any], Callable[[Net], Any]]] = {
    "an attribute moved to a device": (
        attribute("kept", lambda: torch.ones(8)),
        lambda net, x: setattr(net, "kept", net.kept.to(x)),
        lambda net: (type(net.kept), net.kept.tolist()),
    ),
    "a buffer replaced": (
        lambda net: None,
        lambda net, x: setattr(net, "table", net.table.to(x) * 1),
        lambda net: (type(net.table), id(net.table)),
    ),
    "an attribute of a block": (
        lambda net: None,
        lambda net, x: setattr(net.blocks[1], "mean", x.mean()),
        lambda net: hasattr(net.blocks[1], "mean"),
    ),
    "a removed attribute": (
        attribute("first", lambda: True),
        lambda net, x: vars(net).pop("first", None),
        lambda net: getattr(net, "first", None),
    ),
    "a counter": (
        attribute("count", lambda: 0),
        lambda net, x: setattr(net, "count", net.count + 1),
        lambda net: net.count,
    ),
    "a dict": (
        attribute("kept", dict),
        lambda net, x: net.kept.__setitem__(len(net.kept), x),
        lambda net: list(net.kept),
    ),
    "an ordered dict, in order": (
        attribute("kept", lambda: OrderedDict(a=1, b=2)),
        lambda net, x: (net.kept.move_to_end("a"), net.kept.update(c=x)),
        lambda net: list(net.kept.items()),
    ),
    "a list of lists": (
        attribute("kept", lambda: [[]]),
        lambda net, x: net.kept[0].append(x),
        lambda net: [len(k) for k in net.kept],
    ),
    "a set": (
        attribute("kept", lambda: {1}),
        lambda net, x: net.kept.add(2),
        lambda net: set(net.kept),
    ),
    "a deque": (
        attribute("kept", lambda: deque([1], maxlen=2)),
        lambda net, x: net.kept.append(len(net.kept)),
        lambda net: list(net.kept),
    ),
    "an object": (
        attribute("kept", lambda: SimpleNamespace(inner=SimpleNamespace(seen=0))),
        lambda net, x: setattr(net.kept.inner, "seen", net.kept.inner.seen + 1),
        lambda net: net.kept.inner.seen,
    ),
    "an object with slots": (
        attribute("kept", Slots),
        lambda net, x: (setattr(net.kept, "seen", 1), setattr(net.kept, "empty", x)),
        lambda net: (net.kept.seen, hasattr(net.kept, "empty")),
    ),
    "inside of a frozen object": (
        attribute("kept", Frozen),
        lambda net, x: net.kept.log.append(x),
        lambda net: len(net.kept.log),
    ),
    "a tensor in place": (
        attribute("kept", lambda: torch.zeros(2)),
        add_in_place,
        lambda net: net.kept.tolist(),
    ),
    "a tensor in a list in place": (
        attribute("kept", lambda: [torch.zeros(2)]),
        lambda net, x: net.kept[0].add_(1),
        lambda net: net.kept[0].tolist(),
    ),
    "a float8 buffer in place": (
        lambda net: net.register_buffer("kept", torch.zeros(2, dtype=torch.float8_e4m3fn)),
        lambda net, x: net.kept.copy_(torch.ones(2)),
        lambda net: net.kept.float().tolist(),
    ),
    "an array": (
        attribute("kept", lambda: np.zeros(2)),
        lambda net, x: net.kept.__iadd__(1),
        lambda net: net.kept.tolist(),
    ),
    "generators": (
        attribute("kept", lambda: (torch.Generator(), random.Random(0), np.random.default_rng(0))),
        lambda net, x: (
            torch.rand(1, generator=net.kept[0]),
            net.kept[1].random(),
            net.kept[2].random(),
        ),
        lambda net: (
            net.kept[0].get_state().tolist(),
            net.kept[1].getstate(),
            str(net.kept[2].bit_generator.state),
        ),
    ),
    "variables of a hook": (counting, lambda net, x: None, lambda net: net.told()),
    "a hook that goes after its first call": (
        lambda net: None,
        lambda net, x: net.blocks[0].register_forward_hook(lambda *a: None),
        lambda net: len(net.blocks[0]._forward_hooks),
    ),
    "arguments of a partial function": (
        attribute("kept", lambda: functools.partial(list.append, [])),
        lambda net, x: net.kept(1),
        lambda net: len(net.kept.args[0]),
    ),
    "a module in a plain list": (
        attribute("kept", lambda: [Block()]),
        lambda net, x: setattr(net.kept[0], "mean", x.mean()),
        lambda net: hasattr(net.kept[0], "mean"),
    ),
    "an attribute of the class": (
        lambda net: None,
        lambda net, x: setattr(Net, "shared", Net.shared + 1),
        lambda net: Net.shared,
    ),
    "an attribute of a parameter": (
        lambda net: setattr(net.blocks[0].linear.weight, "state", {"seen": 0}),
        lambda net, x: net.blocks[0].linear.weight.state.update(seen=1),
        lambda net: net.blocks[0].linear.weight.state["seen"],
    ),
    "the data of a parameter": (
        lambda net: None,
        lambda net, x: setattr(
            net.blocks[2].linear.weight, "data", net.blocks[2].linear.weight.data + 1
        ),
        lambda net: net.blocks[2].linear.weight.tolist(),
    ),
}  # fmt: skip


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, generator=generator), torch.tensor([700.0, 400.0, 90.0])


@pytest.mark.parametrize("what", LEAVERS)
def test_inspect_and_a_wrap_that_failed_take_it_back(what: str) -> None:
    prepare, leave, look = LEAVERS[what]
    net = Net(prepare, leave).eval()
    inputs = example()
    before, attributes = look(net), {p: sorted(vars(m)) for p, m in net.named_modules()}
    with torch.no_grad(), preserved_state(net):
        expected = net(*inputs)
        assert look(net) != before or "moved" in what or "hook" in what, "nothing to take back"
    with suppress(UnsupportedBackboneError):  # some remember, and are told so
        ek.inspect(net, example_inputs=inputs)
    assert look(net) == before
    for at in (3, 20, 38):
        with raising_at_call(net, at, Mishap()), suppress(Mishap, ExitKitError):
            ek.unwrap(ek.wrap(net, example_inputs=inputs))
        assert look(net) == before, f"after an error in call {at}"
    assert {p: sorted(vars(m)) for p, m in net.named_modules()} == attributes
    with torch.no_grad():
        assert torch.equal(net(*inputs), expected)


def test_arguments_are_left_as_they_are() -> None:
    def forward(
        self: Net, x: Tensor, t: Tensor, extra: list[Tensor], scale: dict[str, Tensor]
    ) -> Any:
        h = x.mul_(scale.pop("by")) + t[:, None, None] / 1000
        for block in self.blocks:
            h = block(h) + extra.pop()
        return h

    class Consumes(Net):
        pass

    Consumes.forward = forward  # type: ignore[method-assign]
    net = Consumes(lambda net: None, lambda net, x: None).eval()
    x, t = example()
    extra = [torch.randn(3, 4, 8) for _ in range(3)]
    scale = {"by": torch.tensor(2.0)}
    given = (x.clone(), list(extra), dict(scale))
    assert ek.inspect(net, example_inputs=(x, t, extra, scale)).num_stages == 3
    assert torch.equal(x, given[0])
    assert all(a is b for a, b in zip(extra, given[1], strict=True))
    assert scale == given[2]


def test_a_parameter_written_in_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_records, "_SMALL", 4)  # smaller ones are put back
    net = Net(lambda net: None, lambda net, x: net.blocks[1].linear.bias.data.detach()).eval()
    ek.inspect(net, example_inputs=example())
    net._leave = lambda net, x: net.blocks[1].linear.bias.clamp_(max=0.1)
    with pytest.raises(UnsupportedBackboneError, match=r"when it runs \(blocks.1.linear.bias"):
        ek.inspect(net, example_inputs=example())


def test_what_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_MOST", 50)
    net = Net(
        attribute("vocabulary", lambda: [[i] for i in range(100)]), lambda net, x: None
    ).eval()
    assert Snapshot.of(net).unwatched == ["vocabulary.49"]
    views = ek.inspect(net, example_inputs=example()).views
    assert any("too large to be watched for changes: vocabulary" in view for view in views)


def test_layers_that_merge_weights_in_eval_do_not() -> None:
    class Merging(Block):
        merged = False

        def train(self, mode: bool = True) -> Any:
            if mode == self.merged:
                self.linear.weight.data *= 0.5 if mode else 2
                self.merged = not mode
            return super().train(mode)

    net = Net(lambda net: None, lambda net, x: None)
    net.blocks[1] = Merging()
    net.train()
    before = net.blocks[1].linear.weight.clone()
    ek.inspect(net, example_inputs=example())
    assert torch.equal(net.blocks[1].linear.weight, before)


def test_the_outermost_kept_state_alone_looks_at_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each one inside puts the network back, by what was seen outside; one of another network looks."""
    taken: list[nn.Module] = []
    real = Snapshot.of
    monkeypatch.setattr(Snapshot, "of", lambda model: taken.append(model) or real(model))
    net, other = Block().eval(), Block().eval()
    weight, bias = net.linear.weight.clone(), net.linear.bias.clone()
    with kept_state(net) as outside:
        assert is_kept(net) and not is_kept(other)
        for _ in range(2):
            with suppress(ZeroDivisionError), kept_state(net) as inside, kept_state(other):
                net.cache = torch.ones(2)  # type: ignore[assignment]
                with torch.no_grad():
                    net.linear.bias.add_(1)
                raise ZeroDivisionError
            assert inside is outside and set(inside.left) == {"cache", "linear.bias"}
            assert not hasattr(net, "cache") and torch.equal(net.linear.bias, bias)
    assert [id(model) for model in taken] == [id(net), id(other), id(other)]
    assert not is_kept(net) and torch.equal(net.linear.weight, weight)


def test_a_parameter_written_in_place_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_records, "_SMALL", 4)
    net = Block().eval()
    with kept_state(net):
        with kept_state(net) as first, torch.no_grad():
            net.linear.weight.add_(1)
        assert first.left == {"linear.weight": state_records.WRITTEN}
        with kept_state(net) as second:
            pass
        assert second.left == {}
