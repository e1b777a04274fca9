"""Fits of a suite: what is fitted how, and that a fit depends on its recipe alone."""

from __future__ import annotations

import pytest
import torch

from exitkit.benchmark import Recipe, fitted, fitting
from exitkit.benchmark.methods import BERXIT, CARRIED, PLAIN, RELATIVE
from exitkit.errors import ConfigError
from tests import tiny_suites


def test_exits_are_fitted_on_rollouts_on_data_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    real = fitting.fit

    def fit(model, data, *args, **options):
        seen.append(type(data).__name__)
        return real(model, data, *args, **options)

    monkeypatch.setattr(fitting, "fit", fit)
    suite = tiny_suites.suite().with_steps(3)
    recipe = Recipe(steps=5, batch_size=2, rollouts=4)
    torch.manual_seed(0)
    plain = fitted(suite, PLAIN, recipe)
    assert seen == [], "plain reuse needs no fit"
    carried = fitted(suite, CARRIED, Recipe(5, 2, rollouts=4, fit={"precision": "bf16"}))
    assert seen == ["Rollouts"]
    assert plain.exit_config.output.kind == carried.exit_config.output.kind == "carried"
    fitted(suite, BERXIT, recipe)
    assert seen == ["Rollouts", "list"]


def test_fits_depend_on_the_seed_alone() -> None:
    suite = tiny_suites.suite().with_steps(3)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))  # what went on before must not matter
        models.append(fitted(suite, RELATIVE, Recipe(2, 2, seed=seed)).state_dict())
    assert all(torch.equal(v, models[1][n]) for n, v in models[0].items())
    assert any(not torch.equal(v, models[2][n]) for n, v in models[0].items())


def test_a_classifier_has_no_trajectories() -> None:
    with pytest.raises(ConfigError, match="need trajectories, and tiny classes has none"):
        fitted(tiny_suites.classes(), CARRIED, Recipe(2, 2))
