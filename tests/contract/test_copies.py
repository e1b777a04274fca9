"""Copies and pickles of a wrapped model are wrapped models of their own."""

from __future__ import annotations

import copy
import io
from functools import cache

import pytest
import torch

import exitkit as ek
from exitkit.model import ExitModel
from tests.backbones import CASES, Case, prediction


def pickled(model: ExitModel) -> ExitModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: ExitModel = torch.load(file, weights_only=False)
    return loaded


@cache
def original(backbone: Case) -> ExitModel:
    args, kwargs = backbone.inputs(3)
    return ek.wrap(backbone.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_a_copy_leaves_early_by_itself(backbone: Case, copied) -> None:
    args, kwargs = backbone.inputs(3)
    model = original(backbone)
    model.policy = ek.policies.ScriptedExit((1, len(model.exits) + 1, 1))
    expected = prediction(model(*args, **kwargs))
    twin = copied(model)
    assert torch.equal(prediction(twin(*args, **kwargs)), expected)
    assert not {id(m) for m in twin.modules()} & {id(m) for m in model.modules()}

    # Each has its own weights and gates: what is done to one does not reach the other.
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.add_(0.1)
    assert not torch.equal(prediction(twin(*args, **kwargs)), expected)
    bare = ek.unwrap(twin)
    assert not any("forward" in vars(m) for m in bare.modules())
    assert torch.equal(prediction(model(*args, **kwargs)), expected)
    assert model.trace.depth[0].tolist() == [1, len(model.exits) + 1, 1]
