"""`fit`: trains the heads of a wrapped model (and the backbone, if the config says so).

A thin loop over accelerate. Everything random is a function of the seed and the step, so a run that
was killed goes on as if nothing had happened. For a loop of your own use `ExitLoss`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from exitkit._compat import require
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.modes import fitting
from exitkit.training import checkpoints
from exitkit.training.accelerator import accelerated
from exitkit.training.carried import CarriedLoss
from exitkit.training.loop import Loop
from exitkit.training.losses import ExitLoss
from exitkit.training.seeds import preserved_rng
from exitkit.training.settings import FitResult, Record, Settings
from exitkit.training.solving import solve_maps
from exitkit.training.sources import stream_of
from exitkit.training.streams import RolloutData
from exitkit.training.tasks import Task

__all__ = ["FitResult", "Record", "fit"]


def fit(
    model: ExitModel,
    data: Any,
    task: Task | None = None,
    *,
    loss: ExitLoss | CarriedLoss | None = None,
    steps: int = 1000,
    lr: float | None = None,
    head_lr: float | None = None,
    uncertainty_lr: float | None = None,
    head_steps: int = 0,
    weight_decay: float = 0.03,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: int = 100,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: float = 1.0,
    ema: float | None = 0.999,
    seed: int = 0,
    accelerator: Any = None,
    gradient_accumulation: int | None = None,
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    resume: bool = True,
    progress: bool = True,
    log_every: int = 50,
    callback: Callable[[Record], None] | None = None,
) -> FitResult:
    """Fits the exits of a wrapped model.

    Carried exits with maps are solved for first, in closed form; what is left to train are their
    uncertainty heads. With a frozen backbone (`config.loss.train_backbone=False`) only the heads are
    trained, and the backbone stays in eval mode. Training flags and gradient flags are afterwards
    what they were.

    Arguments:
        model: What `wrap` returned.
        data: Batches (a DataLoader or another iterable, read again each epoch), or
            `Rollouts`: then no data are needed. Carried exits are fitted on trajectories
            in any case; from batches they take shape and conditions, and the task's scheduler.
        task: What the backbone predicts; needed for batches.
        loss: The loss; from the model's config if None.
        steps: Optimiser steps.
        lr: Learning rate; 1e-3 for heads alone, 2e-4 with the backbone (the paper's) if None.
        head_lr: Learning rate of output heads; `lr` if None.
        uncertainty_lr: Learning rate of uncertainty heads; ten times `lr` if None, for they start
            far off, at 0.998, where their sigmoid is flat.
        head_steps: Steps before the others in which the heads alone learn, all exits with equal
            weight, on a frozen backbone. New heads are noise, and fine-tuning through them from the
            first step moves a trained backbone for nothing (linear probing then fine-tuning, LP-FT,
            https://arxiv.org/abs/2202.10054). Only where the backbone is trained.
        weight_decay: AdamW's decay, of matrices and kernels.
        betas: AdamW's betas.
        warmup: Steps in which the learning rate rises linearly.
        schedule: What it does then.
        clip: Largest norm of the gradient.
        ema: Decay of the moving average of the weights, with which the model ends; None for none.
        seed: Seed of everything random.
        accelerator: An `accelerate.Accelerator`, for several processes or trackers. If None, one is
            made for the device that the model is on.
        gradient_accumulation: Batches of one step; the accelerator's number if None.
        mixed_precision: Precision of the forward; only without `accelerator`.
        checkpoint_dir: Folder for checkpoints; none if None.
        checkpoint_every: Steps between checkpoints, and between the snapshots in memory that a
            failure goes back to.
        resume: Go on from the last checkpoint in `checkpoint_dir`, exactly.
        progress: Show a progress bar.
        log_every: Steps of a record of the history.
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
    whole = model.exit_config.loss.train_backbone
    lr = lr if lr is not None else (2e-4 if whole else 1e-3)
    settings = Settings(
        steps=steps,
        lr=lr,
        head_lr=lr if head_lr is None else head_lr,
        head_steps=head_steps,
        uncertainty_lr=10 * lr if uncertainty_lr is None else uncertainty_lr,
        weight_decay=weight_decay,
        betas=betas,
        warmup=warmup,
        schedule=schedule,
        clip=clip,
        ema=ema,
        seed=seed,
        gradient_accumulation=1 if gradient_accumulation is None else gradient_accumulation,
        checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
        log_every=log_every,
        callback=callback,
    )
    loss = _loss(model, task, loss)
    require("accelerate", "train", "fit")
    model.calibrations.clear()  # they hold for the exits as they were
    with preserved_rng(), accelerated(_device(model), accelerator, mixed_precision) as ready:
        pieces = gradient_accumulation or ready.gradient_accumulation_steps
        settings = replace(settings, gradient_accumulation=pieces)
        before: tuple[Record, ...] = ()
        if whole and head_steps and isinstance(loss, ExitLoss) and not _begun(settings):
            alone = _heads_alone(settings)
            before = _run(model, data, task, _evenly(loss), alone, ready, False).history
        return replace(_run(model, data, task, loss, settings, ready, whole), before=before)


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
        kept = model.state_dict().keys() if whole else ()
        buffers = {n: b for n, b in model.named_buffers() if n in kept}
        identity = _identity(loss, settings, accelerator, data)
        return Loop(model, loss, stream, accelerator, settings, trained, buffers, identity).run()


def _begun(settings: Settings) -> bool:
    """Whether there is a checkpoint to go on from, in which the heads have long been trained."""
    folder = settings.checkpoint_dir
    return settings.resume and folder is not None and bool(checkpoints.existing(folder))


def _heads_alone(settings: Settings) -> Settings:
    """Settings of the steps of the heads alone, which come first."""
    folder, steps = settings.checkpoint_dir, settings.head_steps
    return replace(
        settings,
        steps=steps,
        head_steps=0,
        lr=settings.head_lr,
        warmup=min(settings.warmup, steps // 10),
        checkpoint_dir=None if folder is None else folder / "heads",
    )


def _evenly(loss: ExitLoss) -> ExitLoss:
    """The loss of a frozen backbone: every exit counts the same, however uncertain it still is."""
    early = copy.copy(loss)
    changes = {"train_backbone": False, "weighting": "uniform", "alternating": False}
    early.config = loss.config.model_copy(update=changes)
    return early


def trainable(model: ExitModel, whole: bool | None = None) -> dict[str, nn.Parameter]:
    """The parameters that `fit` trains: those of the heads, or all if the config says so.

    Arguments:
        model: The wrapped model.
        whole: Whether the backbone is trained too; as the config says if None.

    Returns:
        Parameters by name.

    Raises:
        ConfigError: If there are none.
    """
    heads = {id(parameter) for parameter in model.exit_parameters()}
    whole = model.exit_config.loss.train_backbone if whole is None else whole
    found = {
        n: p
        for n, p in model.named_parameters()
        if (whole or id(p) in heads) and p.is_floating_point()
    }
    if not found:
        raise ConfigError("fit: the model has no parameters to train.")
    return found


def _loss(
    model: ExitModel, task: Task | None, loss: ExitLoss | CarriedLoss | None
) -> ExitLoss | CarriedLoss:
    carried = model.heads.kind.fitted_on == "windows"
    if loss is None:
        return CarriedLoss(model.exit_config) if carried else ExitLoss(task, model.exit_config)
    if isinstance(loss, CarriedLoss) is not carried:
        raise ConfigError(
            f"fit: a {type(loss).__name__} does not fit exits of kind {model.exit_config.output.kind!r}. "
            f"Pass {'CarriedLoss' if carried else 'ExitLoss'}, or leave loss= out."
        )
    return loss


def _identity(
    loss: ExitLoss | CarriedLoss, settings: Settings, accelerator: Any, data: Any
) -> dict[str, Any]:
    """What must be equal for a run to go on as the same run."""
    return settings.identity() | {
        "processes": accelerator.num_processes,
        "mixed_precision": str(accelerator.mixed_precision),
        "loss": loss.config.model_dump(),
        "data": type(data).__name__,
    }


def _device(model: ExitModel) -> torch.device:
    return next(model.parameters()).device
