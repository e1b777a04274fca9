"""Flags are lent: each module and each parameter gets its own back, also when something fails."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from exitkit.modes.flags import evaluating, fitting, preserved_rng


class Broken(Exception):
    """Ends a block of code."""


def mixed() -> nn.Sequential:
    """A network in train mode with one part in eval mode and one frozen weight, as users have them."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
    net.train()
    net[1][0].eval()
    net[0].bias.requires_grad_(False)
    return net


def flags(net: nn.Module) -> list[bool]:
    return [m.training for m in net.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_flag_back(fails: bool) -> None:
    net = mixed()
    before = flags(net)
    try:
        with evaluating(net):
            assert flags(net) == [False] * len(before)
            if fails:
                raise Broken
    except Broken:
        pass
    assert flags(net) == before
    assert flags(net.train()) != before, "one flag for all would not have been noticed"


@pytest.mark.parametrize("whole", [False, True])
def test_only_what_is_trained_gets_gradients(whole: bool) -> None:
    net = mixed()
    chosen = {"0.bias": net[0].bias}
    with fitting(net, chosen, whole):
        assert flags(net) == [whole] * len(flags(net))
        net(torch.randn(5, 3)).square().sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is not None] == ["0.bias"]


def test_gradients_of_before_are_there_afterwards() -> None:
    net = mixed()
    net(torch.randn(5, 3)).square().sum().backward()
    wanted = [p.requires_grad for p in net.parameters()]
    grads = [p.grad for p in net.parameters()]
    before, values = flags(net), [None if g is None else g.clone() for g in grads]
    assert None in grads and not all(g is None for g in grads)
    with pytest.raises(Broken), fitting(net, {"0.bias": net[0].bias}, whole=False):
        net(torch.randn(5, 3)).sum().backward()
        raise Broken
    assert flags(net) == before
    assert [p.requires_grad for p in net.parameters()] == wanted
    for parameter, grad, value in zip(net.parameters(), grads, values, strict=True):
        assert parameter.grad is grad
        assert value is None or torch.equal(parameter.grad, value)


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_those_of_before(fails: bool) -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seed()
    want, moved = drawn(), drawn()
    seed()
    try:
        with preserved_rng():
            assert drawn() == want
            if fails:
                raise Broken
    except Broken:
        pass
    found = drawn()
    assert found == want
    assert all(a != b for a, b in zip(found, moved, strict=True)), "draws do not move the states"
