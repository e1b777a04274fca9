"""Skips through weights of zeros are found, though nothing comes through them yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.surgery.zero_weights import inside, zeros_filled
from tests.landing_networks import IMAGE, UNet, example


class ZeroSkips(UNet):
    """Skips that are added through convolutions, or gains, that start at zero."""

    def __init__(self, gains: bool = False) -> None:
        super().__init__("scaled")
        norms = self.norms
        self.zeros = nn.ModuleList(nn.Conv2d(n.num_channels, n.num_channels, 1) for n in norms)
        for zero in self.zeros:
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        self.norms = self.zeros
        if gains:
            self.norms = nn.ModuleList(nn.GroupNorm(2, n.num_channels) for n in norms)
            for norm in self.norms:
                nn.init.zeros_(norm.weight)


def resumes(net: nn.Module) -> list[int | None]:
    plan = ek.inspect(net.eval(), example_inputs=example(IMAGE))
    return [b.resume for b in plan.boundaries]


@pytest.mark.parametrize("gains", [False, True])
def test_what_is_read_through_zeros_is_what_is_read_once_they_are_trained(gains: bool) -> None:
    torch.manual_seed(0)
    net = ZeroSkips(gains)
    before = {name: (id(p), p._version) for name, p in net.named_parameters()}
    found = resumes(net)
    assert {name: (id(p), p._version) for name, p in net.named_parameters()} == before
    for norm in net.norms:
        nn.init.normal_(norm.weight)
    assert found == resumes(net)
    assert found == resumes(UNet("scaled"))


def test_the_control_without_skips_resumes_elsewhere() -> None:
    torch.manual_seed(0)
    net = UNet("add")
    net.forward = lambda x, t: _chain(net, x, t)  # type: ignore[method-assign]
    assert resumes(net) != resumes(UNet("scaled"))


def _chain(net: UNet, x: Tensor, t: Tensor) -> Tensor:
    x = net.stem(x) + t.view(-1, 1, 1, 1) / 1000
    for i, stage in enumerate(net.down):
        x = stage(x if i == 0 else nn.functional.avg_pool2d(x, 2))
    x = net.mid(x)
    for i, stage in enumerate(net.up):
        x = stage(x if i == 0 else nn.functional.interpolate(x, scale_factor=2))
    return net.out(x)


def test_weights_come_back_and_blocks_keep_theirs() -> None:
    net = nn.ModuleDict(
        {"zero": nn.Linear(4, 4), "block": nn.Linear(4, 4), "other": nn.Linear(4, 4)}
    )
    for name in ("zero", "block"):
        nn.init.zeros_(net[name].weight)
        nn.init.zeros_(net[name].bias)
    own = net["zero"].weight
    with pytest.raises(ValueError, match="inside"), zeros_filled(net, {"block"}) as found:
        assert found == ["zero.weight"] and bool(net["zero"].weight.any())
        assert not net["block"].weight.any() and not net["zero"].bias.any()
        raise ValueError("inside")
    assert net["zero"].weight is own and not own.any()


def test_what_is_inside() -> None:
    assert inside("a.b", {"a"}) and inside("a", {"a"}) and not inside("ab", {"a"})


class Packed(Tensor):
    """Quantised weights: most operations are not there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "any":
            raise NotImplementedError("any")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_packed_weights_stay_as_they_are() -> None:
    net = ZeroSkips()
    packed = net.zeros[0].weight = nn.Parameter(torch.zeros(3, 3, 1, 1).as_subclass(Packed))
    with pytest.raises(NotImplementedError):
        packed.any()
    with zeros_filled(net, set()) as found:
        assert found == [
            "norms.1.weight",
            "norms.2.weight",
        ]  # the same modules, by their first name
        assert net.zeros[0].weight is packed
