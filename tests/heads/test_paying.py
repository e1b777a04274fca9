"""Exits that cost what the full network does are said to, and are no default."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import exitkit as ek


class Narrow(nn.Module):
    """Blocks of hardly any work between a stem and a tail of any size."""

    def __init__(self, work: int) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, work, 1), nn.GELU(), nn.Conv2d(work, 16, 1))
            for _ in range(4)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t.view(-1, 1, 1, 1) / 1000
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.tail(h)
        return out


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])


def test_costly_exits_are_named_and_left_out() -> None:
    net = Narrow(4).eval()
    plan = ek.inspect(net, example_inputs=inputs())
    every = ek.wrap(net, "relative", example_inputs=inputs(), exits=("blocks.*",))
    costs = {e.path: e.cost for e in every.exits}
    ek.unwrap(every)
    poor = {path for path, cost in costs.items() if cost >= 1}
    assert poor and len(poor) < len(costs), costs
    assert {b.path for b in plan.boundaries if not b.pays} == poor
    assert str(plan).count("does not pay") == len(poor)
    default = ek.wrap(net, "relative", example_inputs=inputs())
    assert {e.path for e in default.exits} == set(costs) - poor


def test_exits_over_real_work_all_stay() -> None:
    net = Narrow(256).eval()
    assert "does not pay" not in str(ek.inspect(net, example_inputs=inputs()))
    assert len(ek.wrap(net, "relative", example_inputs=inputs()).exits) == 3


def test_a_named_exit_stays_and_the_summary_says_what_it_costs() -> None:
    model = ek.wrap(Narrow(4).eval(), "relative", example_inputs=inputs(), exits=(-1,))
    assert len(model.exits) == 1 and model.exits[0].cost >= 1
    assert "does not pay" in model.summary()
