"""What is fixed about a wrapped model: where exits are, what runs up to them, what it costs."""

from __future__ import annotations

import math

import pytest
import torch

import exitkit as ek
from exitkit.execution.exits import ExitLayout
from tests.backbones import case
from tests.training.test_carried import TinyUNet, make


def layout_of(name):
    """The layout of plain exits of a case, or of carried ones of the tiny U-Net."""
    if name == "carried":
        model = make(net=TinyUNet)
    else:
        args, _ = case(name).inputs(2)
        model = ek.wrap(case(name).make(), "relative", example_inputs=args)
    return model, ExitLayout.of(model.plan, model.heads)


@pytest.mark.parametrize("name", ["tuple_blocks", "carried"])
def test_layers_are_the_blocks_that_run(name):
    model, layout = layout_of(name)
    n = model.plan.num_stages
    assert math.isnan(layout.layers[0]) and layout.layers[-1] == n
    for depth, point in enumerate(layout.points, start=1):
        skipped = range(point.boundary.stage + 1, (point.landing or n) + 1)
        assert point.index == depth and layout.at[point.boundary.stage] is point
        assert layout.layers[depth] == sum(s not in skipped for s in range(1, n + 1))


def test_costs_add_up_to_the_full_model():
    model, layout = layout_of("tuple_blocks")
    assert layout.glue_macs > 0
    assert sum(macs for _, _, macs in layout.stages) + layout.glue_macs == pytest.approx(
        model.plan.macs
    )
    assert all(point.output_macs > 0 and point.uncertainty_macs > 0 for point in layout.points)


def test_carried_heads_alone_are_carried():
    assert all(p.carried is p.output for p in layout_of("carried")[1].points)
    _, plain = layout_of("tuple_blocks")
    assert all(p.carried is None for p in plain.points)
    assert plain.embed(torch.tensor([1.0, 2.0])).shape[0] == 2
