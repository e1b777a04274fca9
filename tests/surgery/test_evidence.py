"""What experiments say of whole networks, in how many forwards, and that they leave nothing behind."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import exitkit as ek
from tests.landing_networks import IMAGE, TOKENS, Chain, Outside, UNet, WaveNet, example
from tests.surgery.test_read_graph import seeded

# Not in a closure: what the hooks of a network hold is put back behind every forward.
FORWARDS: list[int] = []


def view(net: nn.Module, shape: tuple[int, ...]) -> str:
    return ek.inspect(net, example_inputs=example(shape)).views[-1]


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: Chain(depth=40), TOKENS),
        (lambda: Outside(), TOKENS),
        (lambda: Outside(scale=0.3), TOKENS),
        (lambda: WaveNet(depth=12), TOKENS),
        (lambda: UNet("cat"), IMAGE),
    ],
)
def test_a_plan_takes_ten_forwards_at_most(net, shape) -> None:
    torch.manual_seed(0)
    model = net().eval()
    FORWARDS.clear()
    model.register_forward_pre_hook(lambda *_: FORWARDS.append(1))
    said = view(model, shape)
    assert len(FORWARDS) <= 10, said
    found = re.fullmatch(r"(\d+) rows in (\d+) forwards tell who reads whom", said)
    assert found and int(found[2]) <= len(FORWARDS) - 4


def test_a_wrong_idea_of_the_last_call_is_corrected_both_ways() -> None:
    inputs = example(TOKENS)
    plan = ek.inspect(seeded(Outside, last=False), example_inputs=inputs)
    assert [s.calls[-1].base for s in plan.stages] == [0, 0, 0, 0, None]

    class Turned(Outside):
        """The first four feed-forward networks are not added to anything, the last one is."""

        def stream(self, x, t, depth=5):
            x = x + t[:, None, None] / 1000
            for attention, mlp in self.layers[:depth]:
                x = x + attention(x)
                x = x + 0.25 * mlp(x) if mlp is self.layers[-1][1] else mlp(x)
            return x

    last = ek.inspect(seeded(Turned), example_inputs=inputs).stages[-1].calls[-1]
    assert (last.base, last.scale) == (0, pytest.approx(0.25, rel=1e-4))


def test_experiments_leave_the_network_as_it_was() -> None:
    net = seeded(Chain)
    net.register_buffer("calls", torch.zeros(()))
    net.register_forward_pre_hook(lambda m, _: m.__setattr__("calls", m.calls.add_(1)))
    before = net(*example(TOKENS))
    hooks = {path: len(m._forward_hooks) for path, m in net.named_modules()}
    called = float(net.calls)
    view(net, TOKENS)
    assert hooks == {path: len(m._forward_hooks) for path, m in net.named_modules()}
    assert float(net.calls) == called and torch.equal(net(*example(TOKENS)), before)
