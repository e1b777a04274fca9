"""Heads know the sizes that they were fitted on, and tell once of another one."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from diffusers import DDIMScheduler

import exitkit as ek
from exitkit.heads.sizes import FittedSizes
from exitkit.policies import FixedExit, NeverExit
from exitkit.sampling.sampler import Sampler
from exitkit.training.fit import fit
from exitkit.training.losses import ExitLoss
from exitkit.training.tasks import Noise
from tests.training.test_carried import SHAPE, make

OTHER = (3, 8, 4)


def told(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "were fitted on samples of shape" in str(w.message)]


def call(model, shape=OTHER, rows=2):
    return model(torch.randn(rows, *shape), torch.full((rows,), 500))


def on_data(*shapes):
    model = make("relative")
    batches = [torch.randn(2, *shape) for shape in shapes]
    fit(model, batches, Noise(DDIMScheduler()), steps=len(shapes), progress=False)
    model.policy = FixedExit(1)
    return model


def test_sizes_are_kept_by_axis_and_told_of_once():
    sizes = FittedSizes()
    assert told(lambda: sizes.tell("Net", OTHER)) == []  # nothing is known
    sizes.note((3, 4, 4))
    sizes.note((3, 8, 6))
    assert str(sizes) == "(3, 4 to 8, 4 to 6)"
    assert told(lambda: sizes.tell("Net", (3, 5, 6))) == []
    assert told(lambda: sizes.tell("Net", (5, 6))) == []  # another call altogether
    (text,) = told(lambda: sizes.tell("Net", (3, 5, 7)))
    assert (
        text.startswith("Net: ")
        and "shape (3, 4 to 8, 4 to 6), and this call has (3, 5, 7)" in text
    )
    assert told(lambda: sizes.tell("Net", (3, 5, 7))) == []
    sizes.note((7, 7))
    assert sizes.ends == ((7, 7), (7, 7))


@pytest.mark.parametrize("source", ["data", "rollouts", "completion", "own loop"])
def test_every_way_of_fitting_notes_the_size(source):
    kind = "completion" if source == "completion" else "relative"
    model = make("carried" if source == "rollouts" else kind)
    sampler = Sampler("ddim", SHAPE, 6)
    if source == "own loop":
        noisy, t = torch.randn(2, *SHAPE), torch.full((2,), 500)
        output = model(noisy, t, output_exits=True)
        assert model.heads.sizes.ends == ()  # a look is no fit
        ExitLoss(None, model.exit_config)(output, None).total.backward()
        model.heads.mark_fitted()
    elif source == "data":
        fit(model, [torch.randn(2, *SHAPE)], Noise(DDIMScheduler()), steps=1, progress=False)
    else:
        fit(model, ek.Rollouts(model, sampler, 4), steps=1, progress=False)
    assert str(model.heads.sizes) == str(SHAPE)
    other = Sampler("ddim", OTHER, 6)
    model.policy = NeverExit()
    assert told(lambda: ek.generate(model, other)) == []
    model.policy = ek.policies.StepSchedule((4 if source != "completion" else 1,) * 6)
    assert told(lambda: ek.generate(model, sampler)) == []
    (text,) = told(lambda: ek.generate(model, other))
    assert "Net" in text and f"{SHAPE}, and this call has {OTHER}" in text
    assert told(lambda: ek.generate(model, other)) == []


def test_calls_between_the_sizes_of_a_fit_are_of_a_size_that_it_knows():
    model = on_data((3, 4, 4), (3, 8, 4))
    assert told(lambda: call(model, (3, 6, 4))) == []
    assert len(told(lambda: call(model, (3, 6, 6)))) == 1
    # The next fit begins anew.
    fit(model, [torch.randn(2, 3, 6, 6)], Noise(DDIMScheduler()), steps=1, progress=False)
    assert told(lambda: call(model, (3, 6, 6))) == []
    assert len(told(lambda: call(model, (3, 4, 4)))) == 1


def test_sizes_survive_files_and_copies(tmp_path):
    model = on_data(SHAPE)
    for kept in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(told(lambda kept=kept: call(kept))) == 1
    model.save_pretrained(tmp_path / "exits")
    loaded = ek.load(ek.unwrap(model), tmp_path / "exits")
    assert told(lambda: call(loaded, SHAPE)) == []
    assert len(told(lambda: call(loaded))) == 1
