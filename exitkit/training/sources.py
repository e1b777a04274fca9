"""Chooses where the items of a fit come from, and checks the first one."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import torch
from torch.utils.data import TensorDataset

from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import SamplerBase
from exitkit.training.batches import Example
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss
from exitkit.training.objective import arguments
from exitkit.training.settings import Settings
from exitkit.training.streams import (
    BatchStream,
    RolloutData,
    Stream,
    is_split,
    prepared,
)
from exitkit.training.tasks import Task
from exitkit.tree import leaves

SAMPLER = "For example ek.fit(model, ek.Sampler(scheduler, shape=(3, 32, 32)))."


def stream_of(
    model: ExitModel,
    data: Any,
    task: Task | None,
    loss: ExitLoss | CarriedLoss,
    settings: Settings,
    accelerator: Any,
) -> Stream:
    """Where the items come from; looks at the first one, so that a misfit shows here.

    Arguments:
        model: The wrapped model.
        data: What `fit` was given.
        task: The task, or None.
        loss: The loss; carried exits are fitted on windows of rollouts.
        settings: Settings of the loop.
        accelerator: The accelerator.

    Returns:
        The stream.

    Raises:
        ConfigError: If the data fit neither the model nor its config.
    """
    rank = accelerator.process_index
    if task is not None and not model.plan.batched:
        raise ConfigError(
            f"fit: {model.plan.class_name} takes one packed sequence a call, and a task draws batches "
            "of rows. Pass no task, and as data exitkit.training.Example items (arguments of one call and "
            "its target) or a sampler with batch_size=1."
        )
    if isinstance(data, SamplerBase):
        data = Rollouts(model, data, progress=settings.progress and rank == 0)
    own = rollouts_of(model, data, task, loss)
    if own is not None:
        windows = loss if isinstance(loss, CarriedLoss) else None
        return RolloutData(own, windows, settings.seed, rank)
    if not hasattr(data, "__iter__"):
        raise ConfigError(
            f"fit: data is a {type(data).__name__}, expected a sampler, rollouts, a DataLoader or "
            f"another iterable of batches. {SAMPLER}"
        )
    split = prepared(data, accelerator)
    device = next(model.parameters()).device
    share = 1 if split is not data or is_split(data) else accelerator.num_processes
    return _Checked(BatchStream(split, task, settings.seed, device, rank, share), model)


def rollouts_of(
    model: ExitModel, data: Any, task: Task | None, loss: ExitLoss | CarriedLoss
) -> Rollouts | None:
    """The model's own trajectories, where they are what its exits are fitted on.

    Arguments:
        model: The wrapped model.
        data: What `fit` was given.
        task: The task, or None.
        loss: The loss.

    Returns:
        The rollouts, or None where the data are batches.

    Raises:
        ConfigError: If data and config do not go together; the message says which do.
    """
    if isinstance(data, SamplerBase):
        data = Rollouts(model, data)
    config, kind = model.exit_config.loss, model.exit_config.output.kind
    if not isinstance(data, Rollouts):
        if isinstance(loss, CarriedLoss):
            raise ConfigError(
                f"fit: exits of kind {kind!r} are fitted on trajectories, and the data are "
                f"{type(data).__name__}. {SAMPLER}"
            )
        return None
    if data.model is not model:
        raise ConfigError("fit: these rollouts are of another model. Make them with this one.")
    if task is not None:
        raise ConfigError(
            f"fit: trajectories need no task, got {type(task).__name__}: the target is the model's own "
            "output. Leave it out, or pass a loader as data."
        )
    if not isinstance(loss, CarriedLoss) and (config.target != "model" or config.train_backbone):
        raise ConfigError(
            "fit: trajectories have no target but the full model's own output; this config has "
            f"target={config.target!r}, train_backbone={config.train_backbone}. Use preset 'relative' or "
            "'carried', or pass a loader and a task: ek.fit(model, loader, ek.tasks.Noise(scheduler))."
        )
    return data


def source_of(data: Any) -> dict[str, Any] | None:
    """What data are known again by, for a run that is taken up.

    Arguments:
        data: Rollouts, a loader or another iterable.

    Returns:
        Plain values; None where nothing tells.
    """
    if isinstance(data, Rollouts):
        seeds = data.seeds
        return {"sampler": data.sampler.describe(), "seeds": [min(seeds), max(seeds), len(seeds)]}
    dataset = getattr(data, "dataset", data)
    if not hasattr(dataset, "__len__"):
        return None
    told = {"items": len(dataset), "batch_size": getattr(data, "batch_size", None)}
    first = dataset.tensors if isinstance(dataset, TensorDataset) else None
    if isinstance(dataset, list | tuple):
        first = dataset[0] if len(dataset) else None
    digest = hashlib.sha256()
    for _, tensor in leaves(first):
        flat = tensor.detach().flatten()
        index = torch.linspace(0, max(0, flat.numel() - 1), 64).long()
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(flat.cpu()[index].double().numpy().tobytes() if flat.numel() else b"")
    return told | ({"values": digest.hexdigest()[:16]} if first is not None else {})


class _Checked:
    """A stream that compares its first example with the backbone's signature."""

    def __init__(self, stream: BatchStream, model: ExitModel) -> None:
        self._stream, self._model, self._done = stream, model, False
        self.place, self.seek = stream.place, stream.seek

    def next(self, number: int) -> Example:
        example = self._stream.next(number)
        if not self._done:
            self._done = True
            args, named = arguments(self._model, example)
            try:
                inspect.signature(self._model.backbone.forward).bind(*args, **named)
            except TypeError as error:
                raise ConfigError(
                    f"fit: {type(self._model.backbone).__name__} does not take what the batches "
                    f"hold ({error}). Name or drop the conditions in the task: conditions=('name',) "
                    "names what follows the data, conditions=() drops it."
                ) from error
        return example
