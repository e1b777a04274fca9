"""Every read of the device by the host is counted, against an independent count of tensor methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.execution import host
from exitkit.policies import FixedExit, NeverExit, ScriptedExit, UncertaintyThreshold
from tests.backbones import case
from tests.copies import copies

READS = ("__bool__", "__float__", "__int__", "nonzero", "tolist", "item")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Notes the calls of those methods of tensors that make the host wait, in order."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            original = getattr(Tensor, name)

            def noted(self, *args, name=name, original=original, **kwargs):
                seen.append(name)
                return original(self, *args, **kwargs)

            patch.setattr(Tensor, name, noted)
        patch.setattr(torch, "equal", _noting(seen, torch.equal))
        yield seen


def _noting(seen, function):
    def noted(*args):
        seen.append("equal")
        return function(*args)

    return noted


def test_counts_of_an_inner_body_stay_there() -> None:
    ones = torch.ones(3)
    assert not host.rows(ones == 0).numel()  # outside of any count
    with host.HostReads() as outer:
        assert host.flag(ones.all()) and host.values(ones.sum()) == 3.0
        with host.HostReads() as inner:
            assert host.values(ones) == [1.0, 1.0, 1.0] and host.same(ones, ones)
        assert host.rows(ones > 0).tolist() == [0, 1, 2]
    assert (outer.count, inner.count) == (3, 2)


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_every_look_of_a_threshold_is_counted(threshold: float) -> None:
    model, args = _wrapped()
    model.policy = UncertaintyThreshold(threshold)
    model(*args)
    with watched() as seen:
        model(*args)
    assert model.trace.host_checks == len(seen) > 0, seen
    assert model.trace.decisions <= len(model.exits)


@pytest.mark.parametrize("policy", [NeverExit(), FixedExit(1), ScriptedExit((1, 2))])
def test_schedules_of_the_host_read_nothing_of_the_device(policy) -> None:
    model, args = _wrapped()
    model.policy = policy
    model(*args)
    assert model.trace.host_checks == model.trace.decisions == 0


@copies
def _wrapped() -> tuple[ek.ExitModel, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    args = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    net = case("uvit").make().eval()
    model = ek.wrap(net, "relative", example_inputs=args)
    with torch.no_grad():
        for parameter in model.heads.uncertainty.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.heads.mark_fitted()
    return model, args
