"""Fits the exits of a study, once for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exitkit.benchmark.cache import checkpoints_of, is_kept, keep
from exitkit.benchmark.methods import Contender, Exits
from exitkit.benchmark.suite import ClassStudy, Study
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.pipelines.verbs import wrap
from exitkit.sampling.conditions import Conditions
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.training.fit import fit

WALKS = 64
"""Trajectories of its own that a carried model is solved on."""


def fitted(
    study: Study | ClassStudy,
    exits: Exits,
    *,
    steps: int,
    sampler_steps: int = 50,
    batch_size: int = 32,
    walks: int = WALKS,
    seed: int = 0,
    folder: Path | None = None,
    fit_options: dict[str, Any] | None = None,
) -> ExitModel:
    """Wraps a study's backbone and fits its exits, or loads them if that was done before.

    Every fit on data takes as many steps: of samplers half of `steps` on the heads alone, then `steps`
    on what the config trains (`recipe`).

    Arguments:
        study: The study.
        exits: How exits are built and fitted.
        steps: Optimiser steps of a fit on data, half as many for the heads alone before them; carried
            exits are solved, and their uncertainty takes a fifth of it.
        sampler_steps: Steps of the walks of carried exits.
        batch_size: Rows of a step.
        walks: Number of walks.
        seed: Seed of data and noise.
        folder: Where fitted exits are kept, one folder for each kind; nothing is kept if None.
        fit_options: Further arguments of `fit`, instead of the recipe's.

    Returns:
        The wrapped model.

    Raises:
        CheckpointError: If the folder holds exits, finished or not, of a fit with other settings.
    """
    place = folder / study.name / exits.name if folder is not None else None
    inputs = study.example_inputs
    settings: dict[str, Any] = {}
    if exits.fit != "none":
        settings = {"steps": steps, "batch_size": batch_size, "seed": seed, **(fit_options or {})}
    if exits.fit == "walks":
        settings |= {"sampler_steps": sampler_steps, "walks": walks}
    if place is not None and is_kept(place, settings):
        return ExitModel.from_pretrained(study.backbone(), place, example_inputs=inputs)
    torch.manual_seed(seed)
    model = wrap(study.backbone(), exits.resolved(), example_inputs=inputs)
    assert isinstance(model, ExitModel)
    options = {
        "seed": seed,
        "progress": False,
        **recipe(study, model, exits, steps),
        **(fit_options or {}),
    }
    if exits.fit == "walks":
        if isinstance(study, ClassStudy):
            raise ConfigError(f"{exits.name!r} exits need trajectories, and {study.name} has none.")
        sampler = Sampler(
            study.scheduler,
            tuple(study.shape),
            sampler_steps,
            _drawn(study.inputs),
            study.guidance_scale,
            _drawn(study.negative_inputs),
            min(batch_size * 2, walks),
        )
        own = Rollouts(model, sampler, walks)
        options.pop("mixed_precision", None)
        fit(model, own, **options)
    elif exits.fit == "data":
        fit(
            model,
            study.loader(batch_size, seed),
            study.task,
            checkpoint_dir=checkpoints_of(place) if place is not None else None,
            **options,
        )
    if place is not None:
        keep(model, place, settings)
    return model


def fitted_all(
    study: Study | ClassStudy, contenders: Sequence[Contender], **options: Any
) -> dict[str, ExitModel]:
    """Fits what contenders need, each kind of exits once.

    Arguments:
        study: The study.
        contenders: The contenders.
        options: Arguments of `fitted`.

    Returns:
        Models by the name of their exits.
    """
    kinds = {contender.exits.name: contender.exits for contender in contenders}
    return {name: fitted(study, exits, **options) for name, exits in kinds.items()}


def recipe(study: Study | ClassStudy, model: ExitModel, exits: Exits, steps: int) -> dict[str, Any]:
    """How the exits of a short fit are trained: the same for every contender.

    New heads that draw images need a far larger rate than a trained backbone; the steps of the heads
    alone matter less (`python -m benchmarks.heads_first` measures both). A classifier's heads are one linear
    layer on pooled features, and take its rate.

    Arguments:
        study: The study.
        model: The wrapped model.
        exits: How its exits are fitted.
        steps: The study's steps.

    Returns:
        Arguments of `fit`.
    """
    if exits.fit == "walks":
        return {"steps": max(1, steps // 5)}
    shared: dict[str, Any] = {"schedule": "cosine", "warmup": max(1, steps // 10)}
    if isinstance(study, ClassStudy):
        return {**shared, "steps": steps, "lr": 1e-3, "ema": 0.99}
    shared["uncertainty_lr"] = 3e-3
    if model.exit_config.loss.train_backbone:
        return {**shared, "steps": steps, "head_steps": steps // 2, "lr": 2e-4, "head_lr": 3e-2}
    return {**shared, "steps": steps + steps // 2, "lr": 1e-2}


def _drawn(inputs: Conditions | None) -> Conditions | None:
    """Conditions by seed: a function by number is one already."""
    return inputs
