"""Fits the exits of a suite, once for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from exitkit.benchmark.cache import checkpoints_of, is_kept, keep
from exitkit.benchmark.methods import Exits, Method
from exitkit.benchmark.recipe import Recipe
from exitkit.benchmark.suite import Suite
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.pipelines.verbs import wrap
from exitkit.sampling.rollouts import Rollouts
from exitkit.training.fit import fit
from exitkit.training.optimizer import Optimizer
from exitkit.training.settings import Checkpoints


def fitted(
    suite: Suite,
    exits: Exits,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    *,
    progress: bool = False,
) -> ExitModel:
    """Wraps a suite's backbone and fits its exits, or loads them if that was done before.

    Arguments:
        suite: The suite.
        exits: How exits are built and fitted.
        recipe: How long.
        folder: Where fitted exits are kept, one folder for each kind; nothing is kept if None.
        progress: Whether to show progress bars.

    Returns:
        The wrapped model.

    Raises:
        CheckpointError: If the folder holds exits, finished or not, of a fit with other settings.
        ConfigError: If the exits are fitted on trajectories, and the suite has no sampler.
    """
    recipe = recipe or Recipe()
    place = folder / suite.name / exits.name if folder is not None else None
    settings = _settings(suite, exits, recipe)
    if place is not None and is_kept(place, settings):
        return ExitModel.from_pretrained(
            suite.backbone(), place, example_inputs=suite.example_inputs
        )
    torch.manual_seed(recipe.seed)
    if exits.fit == "rollouts" and suite.sampler is None:
        raise ConfigError(f"{exits.name!r} exits need trajectories, and {suite.name} has none.")
    model = wrap(suite.backbone(), exits.resolved(), example_inputs=suite.example_inputs)
    assert isinstance(model, ExitModel)
    options = {
        "seed": recipe.seed,
        "progress": progress,
        **usual_options(suite, model, exits, recipe.steps),
        **recipe.fit,
    }
    if exits.fit == "rollouts":
        assert suite.sampler is not None
        options.pop("precision", None)
        rollouts = Rollouts(model, suite.sampler, seeds=recipe.rollouts, progress=progress)
        fit(model, rollouts, **options)
    elif exits.fit == "data":
        given = options.pop("checkpoints", None) or Checkpoints()
        unfinished = checkpoints_of(place) if place is not None else None
        fit(
            model,
            suite.loader(recipe.batch_size, recipe.seed),
            suite.task,
            checkpoints=replace(given, folder=unfinished),
            **options,
        )
    elif exits.fit == "none":
        model.heads.mark_fitted(uncertainty=False)  # their start is what is compared
    if place is not None:
        keep(model, place, settings)
    return model


def fitted_all(
    suite: Suite,
    methods: Sequence[Method],
    recipe: Recipe | None = None,
    folder: Path | None = None,
    *,
    progress: bool = False,
) -> dict[str, ExitModel]:
    """Fits what methods need, each kind of exits once.

    Arguments:
        suite: The suite.
        methods: The methods.
        recipe: How long.
        folder: Where fitted exits are kept.
        progress: Whether to show progress bars.

    Returns:
        Models by the name of their exits.
    """
    kinds = {method.exits.name: method.exits for method in methods}
    return {
        name: fitted(suite, exits, recipe, folder, progress=progress)
        for name, exits in kinds.items()
    }


def _settings(suite: Suite, exits: Exits, recipe: Recipe) -> dict[str, Any]:
    """What decides the weights of exits: two fits that agree in it are the same."""
    if exits.fit == "none":
        return {}
    told = asdict(recipe)
    settings = {name: told[name] for name in ("steps", "batch_size", "seed")} | dict(recipe.fit)
    if exits.fit == "rollouts" and suite.sampler is not None:
        settings |= {"sampler_steps": suite.sampler.steps, "rollouts": recipe.rollouts}
    return settings


def usual_options(suite: Suite, model: ExitModel, exits: Exits, steps: int) -> dict[str, Any]:
    """How the exits of a short fit are trained: the same for every method.

    Backbones that draw images are trained with their exits by the default of `fit`, and so are heads alone,
    at a larger rate. A classifier's heads are one linear layer on pooled features, and take its rate.

    Arguments:
        suite: The suite.
        model: The wrapped model.
        exits: How its exits are fitted.
        steps: The recipe's steps.

    Returns:
        Arguments of `fit`.
    """
    if exits.fit == "rollouts":
        return {"steps": max(1, steps // 5)}
    base = Optimizer(warmup=max(1, steps // 10))
    if suite.use == "classification":
        rates: dict[str, Any] = {"lr": 1e-3, "head_lr": 1e-3, "uncertainty_lr": 1e-2}
        own = replace(base, schedule="cosine", matrices=None, **rates)
        return {"steps": steps, "optimizer": own, "ema": 0.99}
    if not model.exit_config.loss.train_backbone:
        base = replace(base, lr=1e-2, uncertainty_lr=3e-3)
    return {"steps": steps, "optimizer": base}
