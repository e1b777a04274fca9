"""Exits know the sampler they were fitted on, and say so where another one comes."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler

import exitkit as ek
from exitkit.policies import FixedExit, NeverExit
from exitkit.sampling.fitted import (
    description,
    differences,
    warn_fitted_seeds,
    warn_other_sampler,
)
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.training.fit import fit
from exitkit.training.tasks import Noise
from tests.training.test_carried import SHAPE, make

SAMPLER = Sampler("ddim", SHAPE, 4)


def fitted(seeds=3):
    model = make()
    fit(model, Rollouts(model, SAMPLER, seeds), steps=1, progress=False)
    model.policy = FixedExit(1)
    return model


def told(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught]


def test_settings_are_compared_one_by_one_and_conditions_not_at_all():
    with_labels = Sampler("ddim", SHAPE, 4, conditions={"y": torch.arange(3)}, batch_size=2)
    assert differences(SAMPLER.describe(), with_labels.describe()) == []
    assert differences(SAMPLER.describe(), Sampler(DDIMScheduler(), SHAPE, 4).describe()) == []
    other = Sampler(DDIMScheduler(beta_end=0.01), SHAPE, 5).describe()
    assert differences(SAMPLER.describe(), other) == [
        "scheduler.beta_end=0.01 (fitted on 0.02)",
        "steps=5 (fitted on 4)",
    ]
    own = LoopSampler(lambda model, seeds, steps: torch.zeros(1), 4).describe()
    (gone, *_, added) = differences(SAMPLER.describe(), own)
    assert gone.startswith("scheduler.class=None (fitted on 'DDIMScheduler')")
    assert added.startswith("function=") and added.endswith("(fitted on None)")


def test_a_fit_on_rollouts_notes_sampler_and_seeds():
    assert fitted(seeds=[2, 7, 3]).fitted == description(SAMPLER, [2, 7, 3])
    assert description(SAMPLER, [2, 7, 3]) == {**SAMPLER.describe(), "seeds": [2, 7]}
    model = make("relative")
    fit(model, SAMPLER, steps=1, progress=False)
    assert model.fitted["seeds"] == [0, 255] and model.fitted["steps"] == 4
    # Exits that are fitted on data know of no sampler, whatever was before.
    fit(model, [torch.randn(2, *SHAPE)], Noise(DDIMScheduler()), steps=1, progress=False)
    assert model.fitted is None


def test_another_sampler_is_told_once_until_the_next_fit():
    model = fitted()
    assert told(lambda: ek.generate(model, SAMPLER)) == []
    (text,) = told(lambda: ek.generate(model, SAMPLER.with_steps(6)))
    assert text.startswith("generate: ") and "steps=6 (fitted on 4)" in text
    assert told(lambda: ek.generate(model, SAMPLER.with_steps(7))) == []
    fit(model, Rollouts(model, SAMPLER, 2), steps=1, progress=False)
    assert len(told(lambda: ek.generate(model, SAMPLER.with_steps(7)))) == 1


@pytest.mark.parametrize("name", ["ddim", "dpm++"])  # the latter has a setting of minus infinity
def test_loaded_exits_know_their_sampler_again(name, tmp_path):
    sampler, model = Sampler(name, SHAPE, 4), make()
    fit(model, Rollouts(model, sampler, 2), steps=1, progress=False)
    model.policy = FixedExit(1)
    model.save_pretrained(tmp_path / "exits")
    example = (torch.randn(2, *SHAPE), torch.tensor([10, 500]))
    again = ek.ExitModel.from_pretrained(
        ek.unwrap(model), tmp_path / "exits", example_inputs=example
    )
    for used, count in ((sampler, 0), (sampler.with_steps(5), 1)):
        texts = told(partial(ek.generate, again, used, seeds=2))
        assert sum("fitted on" in text for text in texts) == count, texts


def test_nothing_is_told_where_no_exit_acts_or_nothing_is_known():
    model, other = fitted(), SAMPLER.with_steps(6)
    model.policy = NeverExit()
    assert told(lambda: ek.generate(model, other)) == []
    assert told(lambda: ek.generate(model.backbone, other)) == []
    assert told(lambda: warn_other_sampler(make(), other, "generate")) == []


def test_calibrate_tells_of_another_sampler_and_of_the_seeds_of_the_fit():
    model = fitted(seeds=3)
    model.policy = NeverExit()
    other = SAMPLER.with_steps(5)
    ask = {"max_error": 100.0, "policy": "static", "progress": False}
    found = told(lambda: ek.calibrate(model, other, seeds=4, **ask))
    assert len(found) == 1 and found[0].startswith("calibrate: ") and "steps=5" in found[0]
    found = told(lambda: ek.calibrate(model, SAMPLER, seeds=[1, 2, 3, 9], **ask))
    assert len(found) == 1 and "2 of 4 seeds (such as 1)" in found[0] and "0 to 2" in found[0]
    assert told(lambda: ek.calibrate(model, SAMPLER, seeds=4, **ask)) == []
    assert told(lambda: warn_fitted_seeds(make(), [0, 1], "calibrate")) == []
