"""Forwards put on instances, and taken off from wherever they are by then."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from exitkit.errors import AlreadyWrappedError
from exitkit.execution.patching import ForwardOverride, found, own_forward, restore


class Net(nn.Module):
    def forward(self, x, *, scale=2.0):
        """Scales."""
        return scale * x


class Owner:
    """Adds one to what the backbone says."""

    def __init__(self):
        self.on = True

    def answers(self):
        return self.on

    def answer(self, original, args, kwargs):
        return original(*args, **kwargs) + 1


def test_calls_go_through_the_owner_until_it_is_taken_off():
    net, owner, ended = Net(), Owner(), []
    override = ForwardOverride(net, owner, lambda: ended.append(True))
    x = torch.ones(2)
    assert net(x, scale=3.0).tolist() == [4.0, 4.0]
    owner.on = False
    assert net(x).tolist() == [2.0, 2.0]
    assert found(net, ForwardOverride) and net.forward.__doc__ == "Scales."
    assert inspect.signature(net.forward) == inspect.signature(Net().forward)
    override.remove()
    assert ended == [True] and "forward" not in vars(net) and net(x).tolist() == [2.0, 2.0]


def test_a_forward_that_was_there_comes_back():
    net = Net()
    net.forward = lambda x: 10 * x
    own = net.forward
    override = ForwardOverride(net, Owner())
    assert float(net(torch.ones(()))) == 11
    override.remove()
    assert net.forward is own and float(own_forward(net)(torch.ones(()))) == 2


def test_it_is_taken_off_from_under_a_hook():
    """accelerate's hooks keep what they found as `_old_forward`."""
    net = Net()
    override = ForwardOverride(net, Owner())
    net._old_forward = net.forward
    hook = net.forward = lambda *args, **kwargs: net._old_forward(*args, **kwargs)
    assert found(net, ForwardOverride)
    restore(net, override, None)
    assert net.forward is hook and not found(net, ForwardOverride)
    assert float(net(torch.ones(()))) == 2


def test_it_goes_under_a_hook_that_comes_and_goes():
    """diffusers takes the hooks of offloading off after each call, and puts them on again."""
    net, seen = Net(), []

    def hooked(*args, **kwargs):
        seen.append(True)
        return net._old_forward(*args, **kwargs)

    net._old_forward, net.forward = net.forward, hooked
    override = ForwardOverride(net, Owner())
    for _ in range(2):
        assert float(net(torch.ones(()))) == 3
        net.forward = net.__dict__.pop("_old_forward")  # as accelerate takes a hook off
        assert float(net(torch.ones(()))) == 3
        net._old_forward, net.forward = net.forward, hooked
    assert len(seen) == 2
    with pytest.raises(AlreadyWrappedError, match="leaves early in its pipeline already"):
        ForwardOverride(net, Owner())
    override.remove()
    assert float(net(torch.ones(()))) == 2 and not found(net, ForwardOverride)
    net.forward = net.__dict__.pop("_old_forward")
    assert float(net(torch.ones(()))) == 2


def test_a_copy_overrides_its_own_backbone():
    net = Net()
    net.weight = nn.Parameter(torch.ones(()))
    ForwardOverride(net, Owner())
    twin = copy.deepcopy(net)
    assert twin.forward is not net.forward and twin.forward.backbone is twin
    assert twin.forward.original.__self__ is twin and float(twin(torch.ones(()))) == 3


def test_two_overrides_are_one_too_many():
    net = Net()
    ForwardOverride(net, Owner())
    with pytest.raises(AlreadyWrappedError, match="leaves early in its pipeline already"):
        ForwardOverride(net, Owner())
