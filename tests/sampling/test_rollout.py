"""A rollout gives back the calls that it was recorded from, and what the network said to them."""

from __future__ import annotations

import torch

from tests.training.test_carried import make, rollouts


def test_calls_of_some_pairs_give_what_was_recorded():
    """Against the bare backbone, pairs of several steps in one batch."""
    model = make()
    rollout = rollouts(model)[0]
    steps, rows = torch.tensor([0, 7, 3]), torch.tensor([2, 0, 2])
    (call,) = rollout.each(steps, rows)
    assert call.kwargs["t"].tolist() == rollout.timesteps[steps, rows].tolist()
    with torch.no_grad():
        said = model.backbone(*call.args, **call.kwargs)
    torch.testing.assert_close(said, rollout.prediction[steps, rows], rtol=1e-5, atol=1e-6)
    # Negative control: the rows differ.
    assert not torch.allclose(said[0], said[2], atol=1e-3)
    assert rollout.prediction.shape[:2] == (rollout.steps, rollout.rows) == (8, 4)


def test_hidden_states_are_those_of_the_exits():
    model = make(exits=(1, 3))
    rollout = rollouts(model)[0]
    seen = {}
    hooks = [
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i, out))
        for i, block in enumerate(model.backbone.blocks, start=1)
    ]
    with torch.no_grad():
        model.backbone(rollout.x[5], rollout.timesteps[5])
    for hook in hooks:
        hook.remove()
    assert rollout.hidden.keys() == {1, 2} == rollout.landing.keys()
    assert torch.equal(rollout.hidden[1][5], seen[1]) and torch.equal(rollout.hidden[2][5], seen[3])
    assert torch.equal(rollout.landing[1][5], seen[4])
    # what two exits share is kept once
    assert rollout.landing[1] is rollout.landing[2]
    assert not rollouts(model, hidden=False)[0].hidden
    assert not rollouts(make("relative"))[0].hidden


def test_half_precision_storage():
    model = make()
    full, half = rollouts(model)[0], rollouts(model, dtype=torch.bfloat16)[0]
    assert half.hidden[1].dtype == half.x.dtype == torch.bfloat16
    steps, rows = torch.tensor([1, 2]), torch.tensor([0, 3])
    taken = half.take(half.hidden[1], steps, rows)
    assert taken.dtype == torch.float32
    torch.testing.assert_close(taken, full.hidden[1][steps, rows], rtol=0.02, atol=0.02)
    assert half.at(steps, rows).kwargs["x"].dtype == torch.float32


def test_conditions_follow_their_rows():
    model = make(labels=True)
    rollout = rollouts(model, conditions={"labels": torch.tensor([1, 3])}, batch_size=16, seeds=16)[
        0
    ]
    labels = torch.tensor([1, 3] * 8)
    with torch.no_grad():
        y = model.backbone(rollout.x[2], rollout.timesteps[2], labels)
    assert torch.equal(y, rollout.prediction[2])
    at = rollout.at(torch.tensor([2, 2]), torch.tensor([5, 8]))
    assert at.kwargs["labels"].tolist() == [3, 1]
    with torch.no_grad():
        alone = model.backbone(*at.args, **at.kwargs)
    torch.testing.assert_close(alone, rollout.prediction[2][[5, 8]], rtol=1e-5, atol=1e-6)
    made = rollouts(model, conditions=lambda seeds: {"labels": seeds % 5})[0]
    assert made.at(torch.tensor([0]), torch.tensor([3])).kwargs["labels"].tolist() == [3]
