"""Every product is counted, in whatever module, in plain and in fused attention alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from exitkit.modes.macs import MacCounter


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("fused", [False, True])
def test_products_and_attention_are_counted(fused: bool) -> None:
    net, (rows, length) = Attention(), (3, 5)
    with torch.no_grad(), MacCounter(fused) as counter:
        net(torch.randn(rows, length, 16))
    layers = rows * length * 16 * (48 + 16)
    products = 2 * rows * 2 * length * length * 8  # two heads of width 8: q k and p v
    assert counter.macs == layers + products


class Table(nn.Module):
    """Hands a view of a parameter to a module, as position tables and class tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Parameter(torch.randn(8, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.table[: x.shape[1]])


def test_views_of_parameters_do_not_stop_it() -> None:
    net, x = Table(), torch.randn(2, 3, 4)
    with torch.no_grad(), MacCounter() as counter:
        net(x)
    assert counter.macs == 3 * 4 * 4
    # Control: PyTorch's own counter asks which module it was, and such a view has no gradient.
    with pytest.raises(AssertionError, match="gradient function"), torch.no_grad():
        with FlopCounterMode(display=False):
            net(x)
