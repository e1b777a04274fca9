"""Model and loss as one module, against the two called one after the other."""

from __future__ import annotations

import pytest
import torch

from exitkit.training.batches import Example
from exitkit.training.losses import ExitLoss
from exitkit.training.objective import Objective, arguments
from tests.training.test_carried import SHAPE, make


@pytest.fixture
def example():
    return Example((torch.randn(4, *SHAPE), torch.tensor([1, 50, 500, 900])))


def test_parts_are_those_of_the_loss_on_all_exits(example):
    model = make("relative")
    loss = ExitLoss(config=model.exit_config)
    parts = Objective(model, loss)(example, 0)
    want = loss(model(*example.args, output_exits=True))
    assert parts["total"].item() == want.total.item() and parts["total"].requires_grad
    for k, error in enumerate(want.per_exit, start=1):
        assert parts[f"exit_{k}"].item() == error.item()
    others = {name: part for name, part in parts.items() if name != "total"}
    assert not any(part.requires_grad for part in others.values())
    assert len(want.per_exit) == len(model.exits)


def test_gradients_reach_the_heads_alone(example):
    model = make("relative")
    Objective(model, ExitLoss(config=model.exit_config))(example, 0)["total"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.heads.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_arguments_of_a_backbone_that_leads_with_input_and_time_stay(example):
    args, named = arguments(make("relative"), example)
    assert args == example.args and named == {}
