"""`fit`: trains the heads of a wrapped model (and the backbone, if the config says so).

A thin loop over accelerate. Everything random is a function of the seed and the step, so a run that
was killed goes on as if nothing had happened. For a loop of your own use `ExitLoss`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from exitkit._compat import require
from exitkit.errors import ConfigError
from exitkit.heads.fitted import FITTED
from exitkit.model import ExitModel, ExitModels, Wrapped, expect_wrapped
from exitkit.modes.flags import fitting, preserved_rng
from exitkit.sampling.fitted import description
from exitkit.sampling.network import predicted_type
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import SamplerBase
from exitkit.training.accelerator import accelerated
from exitkit.training.carried import CarriedLoss
from exitkit.training.checkpoints import existing
from exitkit.training.checks import check_instance, check_parameters, check_settings, check_task
from exitkit.training.completion import fit_completion
from exitkit.training.loop import Loop
from exitkit.training.losses import ExitLoss
from exitkit.training.optimizer import WITHOUT_MUON, Optimizer
from exitkit.training.settings import Checkpoints, FitResult, Record, Settings
from exitkit.training.solving import solve_maps
from exitkit.training.sources import source_of, stream_of
from exitkit.training.streams import RolloutData
from exitkit.training.tasks import Task


@torch.inference_mode(False)  # also where the caller wants no gradients: a fit needs its own
def fit(
    model: Wrapped,
    data: Any,
    task: Task | None = None,
    *,
    steps: int = 1000,
    optimizer: Optimizer | None = None,
    checkpoints: Checkpoints | None = None,
    ema: float | None = 0.998,
    precision: Literal["no", "bf16", "fp16"] | None = None,
    accelerator: Any = None,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[Record], None] | None = None,
) -> FitResult:
    """Fits the exits of a wrapped model.

    Completion is solved for along the trajectories of a sampler, in closed form; nothing is trained, and
    of the other arguments only `progress` counts.

    Carried exits with maps are solved for first, in closed form; what is left to train are their
    uncertainty heads. With a frozen backbone (`config.loss.train_backbone=False`) only the heads are
    trained, and the backbone stays in eval mode. With a trained one, what was frozen before
    (`requires_grad_(False)`) stays frozen. Training flags and gradient flags are afterwards what they
    were. The loss is that of the model's config; for another one write a loop of your own
    with `ExitLoss`.

    Arguments:
        model: What `wrap` returned. Several denoisers of a pipeline are fitted one after the other, on
            the same trajectories.
        data: A sampler or `Rollouts`: then no data are needed; or batches (a DataLoader or another
            iterable, read again each epoch). Carried exits are fitted on trajectories alone.
        task: What the backbone predicts; needed for batches.
        steps: Optimiser steps.
        optimizer: Learning rates, decay, schedule, clipping; the usual ones if None.
        checkpoints: Where and how often checkpoints are written, and how often is logged; no files
            if None.
        ema: Decay of the moving average of the weights (timm's `ModelEmaV3`), with which the model
            ends; the decay of step n, at most 1 - n^(-2/3), grows up to it. None for none.
        precision: Precision of the forward; only without `accelerator`.
        accelerator: An `accelerate.Accelerator`, for several processes or trackers. If None, one is
            made for the device that the model is on.
        seed: Seed of everything random.
        progress: Show a progress bar.
        callback: Called with every record.

    Returns:
        The history of the losses, steps and seconds. The model holds the averaged weights.

    Raises:
        ConfigError: If the arguments do not fit each other, the data or the config.
        NonFiniteError: If a loss or gradient is not finite. The message names step, part and exit;
            the model holds the last good weights.
        CheckpointError: If the checkpoint is damaged, or of a fit with other settings.
        MissingExtraError: If accelerate is not installed.
    """
    expect_wrapped("fit", model)
    check_instance(task)
    check_settings(optimizer, Optimizer)
    check_settings(checkpoints, Checkpoints)
    if isinstance(model, ExitModels):
        given = {
            "steps": steps,
            "optimizer": optimizer,
            "ema": ema,
            "precision": precision,
            "accelerator": accelerator,
            "seed": seed,
            "progress": progress,
            "callback": callback,
        }
        return _fit_each(model, data, task, checkpoints, given)
    if model.heads.kind.fitted_on == "states":
        return fit_completion(model, data, task, progress)
    check_parameters(model)
    check_task(model, task)
    whole = model.exit_config.loss.train_backbone
    settings = Settings(
        steps=steps,
        optimizer=(optimizer or Optimizer()).filled(whole),
        checkpoints=checkpoints or Checkpoints(),
        ema=ema,
        precision=precision,
        seed=seed,
        progress=progress,
        callback=callback,
    )
    loss = _loss(model, task)
    require("accelerate", "train", "fit")
    model.calibrations.clear()  # they hold for the exits as they were
    model.heads.sizes.clear()
    with preserved_rng(), accelerated(_device(model), accelerator, precision) as ready:
        pieces = settings.optimizer.accumulation or ready.gradient_accumulation_steps
        settings = replace(settings, accumulation=pieces)
        before: tuple[Record, ...] = ()
        heads_first = whole and settings.optimizer.head_steps and not _begun(settings)
        if heads_first and isinstance(loss, ExitLoss):
            alone = _heads_alone(settings)
            before = _run(model, data, task, _evenly(loss), alone, ready, False).history
        return replace(_run(model, data, task, loss, settings, ready, whole), before=before)


def _fit_each(
    models: ExitModels,
    data: Any,
    task: Task | None,
    checkpoints: Checkpoints | None,
    given: dict[str, Any],
) -> FitResult:
    """Fits several denoisers on the trajectories that they run together."""
    if isinstance(data, SamplerBase):
        data = Rollouts(models, data, progress=given["progress"])
    if not isinstance(data, Rollouts) or task is not None:
        raise ConfigError(
            f"fit: {', '.join(models)} are fitted together on the trajectories of their pipeline. Pass its "
            "sampler as data and no task: ek.fit(models, ek.PipelineSampler(pipe, calls)); or fit one of "
            "them, models[name], on batches."
        )
    parts = {}
    for name, model in models.items():
        kept = checkpoints
        if kept is not None and kept.path is not None:
            kept = replace(kept, folder=kept.path / name)
        parts[name] = fit(model, data.of(model), checkpoints=kept, **given)
    return FitResult(
        tuple(record for part in parts.values() for record in part.history),
        sum(part.steps for part in parts.values()),
        sum(part.seconds for part in parts.values()),
        parts=parts,
    )


def _run(
    model: ExitModel,
    data: Any,
    task: Task | None,
    loss: ExitLoss | CarriedLoss,
    settings: Settings,
    accelerator: Any,
    whole: bool,
) -> FitResult:
    """Runs one loop, over all parameters or those of the heads."""
    trained = trainable(model, whole)
    with fitting(model, trained, whole):
        stream = stream_of(model, data, task, loss, settings, accelerator)
        if isinstance(stream, RolloutData) and isinstance(loss, CarriedLoss):
            solve_maps(model, stream.rollouts, loss.gap_steps, loss.previous_gap_steps)
        kept = [n for n in model.state_dict() if whole or n.rpartition(".")[2] == FITTED]
        buffers = {n: b for n, b in model.named_buffers() if n in kept}
        own = stream.rollouts if isinstance(stream, RolloutData) else data
        identity = _identity(loss, settings, accelerator, own)
        result = Loop(model, loss, stream, accelerator, settings, trained, buffers, identity).run()
        # Last: a fit that failed has told the exits of no sampler.
        model.fitted = None
        said = None if task is None else task.prediction_type
        if isinstance(stream, RolloutData):
            model.fitted = description(stream.rollouts.sampler, stream.rollouts.seeds)
            said = predicted_type(model.fitted.get("scheduler"))
        model.predicts = said or model.predicts
        model.notices.discard("sampler")
        return result


def _begun(settings: Settings) -> bool:
    """Whether there is a checkpoint to go on from, in which the heads have long been trained."""
    folder = settings.checkpoints.path
    return settings.checkpoints.resume and folder is not None and bool(existing(folder))


def _heads_alone(settings: Settings) -> Settings:
    """Settings of the steps of the heads alone, which come first."""
    own, folder = settings.optimizer, settings.checkpoints.path
    steps = own.head_steps
    warmup = min(own.warmup, steps // 10)
    return replace(
        settings,
        steps=steps,
        optimizer=replace(own, head_steps=0, lr=own.head_lr, warmup=warmup, **WITHOUT_MUON),
        checkpoints=replace(
            settings.checkpoints, folder=None if folder is None else folder / "heads"
        ),
    )


def _evenly(loss: ExitLoss) -> ExitLoss:
    """The loss of a frozen backbone: every exit counts the same, however uncertain it still is."""
    early = copy.copy(loss)
    changes = {"train_backbone": False, "weighting": "uniform", "alternating": False}
    early.config = loss.config.model_copy(update=changes)
    return early


def trainable(model: ExitModel, whole: bool | None = None) -> dict[str, nn.Parameter]:
    """The parameters that `fit` trains: those of the heads, or all if the config says so.

    Those that were frozen before stay frozen.

    Arguments:
        model: The wrapped model.
        whole: Whether the backbone is trained too; as the config says if None.

    Returns:
        Parameters by name.

    Raises:
        ConfigError: If there are none, or the backbone is to be trained and wholly frozen.
    """
    heads = {id(parameter) for parameter in model.exit_parameters()}
    whole = model.exit_config.loss.train_backbone if whole is None else whole
    found = {
        n: p
        for n, p in model.named_parameters()
        if (whole or id(p) in heads) and p.is_floating_point() and p.requires_grad
    }
    if not found:
        raise ConfigError(
            "fit: the model has no parameters to train; those that are frozen stay frozen. "
            "model.heads.requires_grad_(True) thaws its heads."
        )
    if whole and all(id(p) in heads for p in found.values()):
        raise ConfigError(
            f"fit: preset {model.exit_config.preset!r} trains the backbone too (loss.train_backbone), and "
            f"all parameters of this {model.plan.class_name} are frozen, which fit leaves as they are. Thaw "
            "those to train with model.backbone.requires_grad_(True), or wrap with a preset for frozen "
            "backbones, such as 'relative'."
        )
    return found


def _loss(model: ExitModel, task: Task | None) -> ExitLoss | CarriedLoss:
    """The loss of the model's config."""
    carried = model.heads.kind.fitted_on == "windows"
    return CarriedLoss(model.exit_config) if carried else ExitLoss(task, model.exit_config)


def _identity(
    loss: ExitLoss | CarriedLoss, settings: Settings, accelerator: Any, data: Any
) -> dict[str, Any]:
    """What must be equal for a run to go on as the same run."""
    return settings.identity() | {
        "processes": accelerator.num_processes,
        "mixed_precision": str(accelerator.mixed_precision),
        "loss": loss.config.model_dump(),
        "data": type(data).__name__,
        "source": source_of(data),
    }


def _device(model: ExitModel) -> torch.device:
    return next(model.parameters()).device
