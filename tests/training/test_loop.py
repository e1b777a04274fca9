"""The loop of a fit: what it logs, and what the model holds when it ends early."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import NonFiniteError
from exitkit.training.fit import fit
from tests.training.test_fit import examples, make, same, weights


def test_the_record_of_the_last_step_is_always_there():
    told = []
    result = fit(make(), examples(), steps=3, progress=False, callback=told.append)
    assert result.steps == 3 and result.history[-1]["step"] == 3.0
    assert told == list(result.history) and result.checkpoint is None
    assert {"total", "gradient_norm", "lr", "exit_1"} <= result.history[-1].keys()


def test_the_same_seed_is_the_same_run():
    models = [make() for _ in range(3)]
    for model, steps in zip(models, (3, 3, 4), strict=True):
        fit(model, examples(), steps=steps, progress=False)
    first, again, longer = map(weights, models)
    assert same(first, again) and not same(first, longer)


def test_numbers_that_are_not_finite_leave_the_weights_of_the_start():
    data, model = examples(), make()
    data[2].args[0][1] = torch.nan
    before = weights(model)
    with pytest.raises(NonFiniteError, match=r"step 3 of 5.*weights of step 0.*no checkpoint"):
        fit(model, data, steps=5, progress=False)
    assert same(weights(model), before)
