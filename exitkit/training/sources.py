"""Chooses where the items of a fit come from, and checks the first one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from exitkit.errors import ConfigError
from exitkit.training.batches import Example
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss
from exitkit.training.objective import arguments
from exitkit.training.rollouts import Rollouts
from exitkit.training.settings import Settings
from exitkit.training.streams import (
    BatchStream,
    RolloutData,
    Stream,
    is_split,
    prepared,
    walks_for,
)
from exitkit.training.tasks import Task

if TYPE_CHECKING:
    from exitkit.model import ExitModel


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
        loss: The loss; carried exits take walks whatever the data.
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
            "its target) or ek.Rollouts(model, scheduler, shape, batch_size=1, call=...)."
        )
    carried = isinstance(loss, CarriedLoss)
    if carried and not isinstance(data, Rollouts):
        data = walks_for(model, data, task, settings.seed)
    if isinstance(data, Rollouts):
        config = model.exit_config.loss
        if data.model is not model:
            raise ConfigError("fit: these Rollouts walk another model. Make them with this one.")
        if not carried and (config.target != "model" or config.train_backbone):
            raise ConfigError(
                f"fit: Rollouts have no target but the full model's own output; this config "
                f"has target={config.target!r}, train_backbone={config.train_backbone}. Use preset "
                "'relative' or 'carried', or pass data and a task."
            )
        return RolloutData(
            data, loss if isinstance(loss, CarriedLoss) else None, settings.seed, rank
        )
    if not hasattr(data, "__iter__"):
        raise ConfigError(
            f"fit: data is a {type(data).__name__}, expected a DataLoader, another iterable of "
            "batches, or ek.Rollouts(model, scheduler, shape)."
        )
    split = prepared(data, accelerator)
    device = next(model.parameters()).device
    share = 1 if split is not data or is_split(data) else accelerator.num_processes
    return _Checked(BatchStream(split, task, settings.seed, device, rank, share), model)


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
