"""Tails replayed on given hidden states, against the backbone itself."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.execution.replay import chosen, stacked
from exitkit.surgery.inputs import bind, signature_of
from tests.backbones import case


@pytest.fixture
def made():
    backbone = case("tuple_blocks")
    args, _ = backbone.inputs(3)
    net = backbone.make()
    return ek.wrap(net, "relative", example_inputs=args), args


def test_the_last_hidden_state_gives_the_full_prediction(made):
    model, args = made
    with torch.no_grad():
        record = model.record(*args)
        bound = bind(signature_of(model.backbone.forward), args, {})
        analyst = model._executor.analyst
        replayed = analyst.replay(bound, record.final, 3, None)
        many = analyst.replay_all(bound, [record.final, 2 * record.final], 3, None)
        twice = analyst.replay(bound, 2 * record.final, 3, None)
        want = model.backbone(*args)[0]
    torch.testing.assert_close(replayed, want, rtol=0, atol=0)
    torch.testing.assert_close(many[0], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many[1], twice, rtol=1e-5, atol=1e-6)
    # Negative control: the blocks are skipped, so the tail sees what it is given.
    assert not torch.allclose(
        analyst.replay(bound, torch.zeros_like(record.final), 3, None), want, atol=1e-3
    )


def test_arguments_of_some_rows_are_those_rows(made):
    model, args = made
    bound = bind(signature_of(model.backbone.forward), args, {})
    some = chosen(bound, model.plan, torch.tensor([2, 0]), 3)
    assert torch.equal(some.values["x"], args[0][[2, 0]])
    assert torch.equal(some.values["t"], args[1][[2, 0]])
    assert chosen(bound, model.plan, torch.arange(3), 3) is bound


def test_copies_lie_one_behind_the_other_and_a_shared_time_stays(made):
    model, (x, t) = made
    signature = signature_of(model.backbone.forward)
    twice = stacked(bind(signature, (x, t), {}), model.plan, 3, 2)
    assert torch.equal(twice.values["x"], torch.cat([x, x]))
    assert torch.equal(twice.values["t"], torch.cat([t, t]))
    shared = stacked(bind(signature, (x, t[:1]), {}), model.plan, 3, 2)
    assert torch.equal(shared.values["t"], t[:1])
