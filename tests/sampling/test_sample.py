"""Samples, and what looks on or reaches in while they are made: edits and records."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from exitkit.sampling.sampler import Sampler
from tests.sampling.helpers import SHAPE, Conv


class Counter:
    """A record that only calls, and notes what it is told."""

    def __init__(self):
        self.told = []

    def start(self, seeds):
        self.told.append(("start", seeds.tolist()))

    def next_call(self):
        self.told.append("call")

    def call(self, model, args, kwargs):
        self.told.append("branch")
        return model(*args, **kwargs)


def guided():
    shift = {"shift": torch.tensor([0.5])}
    return Sampler("ddim", SHAPE, 2, shift, 2.0, {}, batch_size=2)


def test_an_edit_acts_like_another_network_in_every_branch():
    seen = []

    def edit(step, seeds, prediction):
        seen.append((step, seeds.tolist()))
        return 0.5 * prediction

    edited = guided().run(Conv(), [3, 5, 8], edit=edit)
    halved = guided().run(Conv(lambda x: 0.5 * x), [3, 5, 8])
    assert torch.equal(edited.samples, halved.samples)
    assert seen == [(s, [3, 5]) for s in (0, 0, 1, 1)] + [(s, [8]) for s in (0, 0, 1, 1)]
    assert not torch.allclose(edited.samples, guided().run(Conv(), [3, 5, 8]).samples, atol=1e-3)


def test_evaluations_of_a_second_order_solver_are_edited_within_one_step():
    steps = []

    def edit(step, seeds, prediction):
        steps.append(step)
        return prediction

    Sampler(HeunDiscreteScheduler(), SHAPE, 3).run(Conv(), [0], edit=edit)
    assert steps == [0, 1, 1, 2, 2]


def test_a_record_makes_every_call_and_changes_nothing():
    record = Counter()
    recorded = guided().run(Conv(), [3, 5, 8], record=record)
    assert torch.equal(recorded.samples, guided().run(Conv(), [3, 5, 8]).samples)
    batch = ["call", "branch", "branch"] * 2
    assert record.told == [("start", [3, 5]), *batch, ("start", [8]), *batch]


def test_a_sample_cannot_be_changed_afterwards():
    sample = guided().run(Conv(), [3])
    assert sample.decoded is None and sample.trace is None and sample.samples.device.type == "cpu"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.seeds = (4,)
