"""The list of networks by kind: each is carried or refused with an explanation, none is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.kinds import judge, networks
from tests.landing_networks import TOKENS, Chain, WaveNet, example


def _idle() -> nn.Module:
    net = Chain()
    for parameter in net.blocks.parameters():
        nn.init.zeros_(parameter)
    return net


def test_what_is_said_of_a_network() -> None:
    assert judge(Chain, example(TOKENS)) == ("carried", "")
    result, why = judge(lambda: WaveNet("cat"), example(TOKENS))
    assert result == "refused" and "does not move with the hidden state" in why
    result, why = judge(
        _idle, example(TOKENS)
    )  # blocks that do nothing: depths cannot be told apart
    assert result == "wrong" and why

    def missing() -> nn.Module:
        raise ImportError("no such package")

    assert judge(missing, (torch.zeros(1),)) == ("missing", "no such package")


@pytest.mark.slow
def test_no_network_of_any_kind_is_wrong() -> None:
    members = [(kind, *network) for kind, of in networks().items() for network in of]
    assert len(members) >= 40
    results = {(kind, name): judge(make, inputs) for kind, name, make, inputs in members}
    wrong = {key: why for key, (result, why) in results.items() if result == "wrong"}
    assert not wrong
    assert all(why for result, why in results.values() if result == "refused")
