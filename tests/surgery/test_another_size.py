"""Channels are what does not grow with the input, where no size tells them from a side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.surgery.hidden_layout import channel_axis

CUBE = (16, 16, 16)


class Block(nn.Module):
    """A depthwise convolution and two matrices, as in ConvNeXt, on (C, H, W) or on (H, W, C)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.permute(0, 3, 1, 2) if self.last else x).permute(0, 2, 3, 1)
        h = self.down(torch.tanh(self.up(h)))
        return x + (h if self.last else h.permute(0, 3, 1, 2))


class Net(nn.Module):
    """Blocks in one of the two layouts; with `fixed` it runs at one size only."""

    def __init__(self, last: bool, fixed: bool = False) -> None:
        super().__init__()
        self.last, self.fixed = last, fixed
        self.stem, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.blocks = nn.ModuleList(Block(last) for _ in range(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.fixed and x.shape[1:] != (3, 16, 16):
            raise ValueError("made for 16x16")
        x = self.stem(x) + t.view(-1, 1, 1, 1) / 1000
        x = x.permute(0, 2, 3, 1) if self.last else x
        for block in self.blocks:
            x = block(x)
        return self.out(x.permute(0, 3, 1, 2) if self.last else x)


def axes(net: nn.Module, side: int = 16) -> set[int]:
    example = (torch.randn(3, 3, side, side), torch.tensor([700.0, 400.0, 90.0]))
    plan = ek.inspect(net.eval(), example_inputs=example)
    assert side != 16 or {b.hidden.shape for b in plan.boundaries} == {CUBE}
    return {b.hidden.channel_axis for b in plan.boundaries}


@pytest.mark.parametrize("last", [False, True])
def test_a_cube_has_its_channels_where_nothing_grows(last: bool) -> None:
    torch.manual_seed(0)
    assert axes(Net(last)) == {2 if last else 0}
    assert channel_axis(CUBE, Block(last)) == 0, "the control: weights alone say one thing for both"


def test_a_network_of_one_size_is_told_by_its_weights() -> None:
    torch.manual_seed(0)
    assert axes(Net(False, fixed=True)) == {0}


def test_no_run_where_sizes_tell() -> None:
    counted: list[tuple[int, ...]] = COUNTED

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        COUNTED.append(tuple(args[0].shape[1:]))

    torch.manual_seed(0)
    for side, grown in ((12, False), (16, True)):
        counted.clear()
        net = Net(False)
        net.register_forward_pre_hook(count)
        assert axes(net, side) == {0}
        assert ((3, 2 * side, 2 * side) in counted) == grown


COUNTED: list[tuple[int, ...]] = []
