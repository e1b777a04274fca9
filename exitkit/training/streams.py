"""Where the items of a fit come from, by number, so that a fit can be taken up at any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from exitkit.errors import ConfigError
from exitkit.sampling.rollouts import Rollouts
from exitkit.training.batches import Example, to_device
from exitkit.training.carried import CarriedLoss, carried_heads
from exitkit.training.seeds import derive, generator, seed_everything
from exitkit.training.tasks import Task


class Stream(Protocol):
    """Items of a fit."""

    def next(self, number: int) -> Any:
        """Item `number`, counted from 0 over the whole fit; asked for in order."""

    def place(self) -> dict[str, int]:
        """Where the data stand, for a checkpoint."""

    def seek(self, place: Mapping[str, int]) -> None:
        """Goes to where the data stood."""


class BatchStream:
    """Examples from a loader or any iterable of batches, epoch after epoch.

    All random numbers of loading (shuffling, augmentation) are functions of the seed, the epoch and
    the place in it: `seek` repeats an epoch's loading up to the place, and the rest is as it was.

    Arguments:
        data: A DataLoader or another iterable of batches.
        task: Turns batches into examples; None if the batches are `Example`s.
        seed: Seed of the order and of what the task draws.
        device: Where examples go.
        rank: Number of this process.
        share: Processes that share the batches of `data` one by one; 1 if `data` is split already.
    """

    def __init__(
        self,
        data: Any,
        task: Task | None,
        seed: int,
        device: torch.device,
        rank: int = 0,
        share: int = 1,
    ) -> None:
        self.data, self.task, self.seed, self.device = data, task, seed, device
        self.rank, self.share = rank, share
        self._epoch, self._position = 0, 0
        self._iterator: Iterator[Any] | None = None

    def next(self, number: int) -> Example:
        """Loads the next batch and draws an example from it.

        Arguments:
            number: Number of the item: what the task draws depends on it and the seed alone.

        Returns:
            The example, on the device.

        Raises:
            ConfigError: If there are no (more) batches, or no task to read them.
        """
        batch = self._fetch()
        if self.share > 1:
            others = [self._fetch() for _ in range(self.share - 1)]
            batch = [batch, *others][self.rank]
        batch = to_device(batch, self.device)
        if isinstance(batch, Example):
            return batch
        if self.task is None:
            raise ConfigError(
                f"fit: the data yield {type(batch).__name__}, and no task says how to train on it. "
                "Pass one, for example task=ek.tasks.Noise(scheduler)."
            )
        return self.task.draw(batch, generator(self.seed, "draw", number, self.rank))

    def place(self) -> dict[str, int]:
        """Epoch and batches taken from it."""
        return {"epoch": self._epoch, "position": self._position}

    def seek(self, place: Mapping[str, int]) -> None:
        """Goes to a place, by loading and dropping the epoch's batches before it."""
        self._epoch, self._position, self._iterator = place["epoch"], 0, None
        for _ in range(place["position"]):
            self._fetch()

    def _fetch(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = self._open()
            seed_everything(derive(self.seed, "load", self._epoch, self._position))
            try:
                batch = next(self._iterator)
            except StopIteration:
                if self._position == 0:
                    break
                self._epoch, self._position, self._iterator = self._epoch + 1, 0, None
                continue
            self._position += 1
            return batch
        if self._epoch == 0:
            raise ConfigError(
                "fit: the data yield no batch. Is the data set smaller than one batch with "
                "drop_last=True?"
            )
        raise ConfigError(
            f"fit: the data ran out after {self._epoch} passes and cannot be read again. Pass a "
            "DataLoader or a list rather than a generator, or fewer steps."
        )

    def _open(self) -> Iterator[Any]:
        seed = derive(self.seed, "epoch", self._epoch)
        seed_everything(seed)
        for owner in _owners(self.data):
            for name in ("generator", "synchronized_generator"):
                own = getattr(owner, name, None)
                if isinstance(own, torch.Generator):
                    own.manual_seed(seed)
            advance = getattr(owner, "set_epoch", None)
            if advance is not None:
                advance(self._epoch)
        return iter(self.data)


def _owners(data: Any) -> list[Any]:
    """A loader and its samplers, also those inside accelerate's: whatever may hold a generator."""
    found, waiting = [], [data]
    while waiting:
        owner = waiting.pop()
        found.append(owner)
        inner = (getattr(owner, name, None) for name in ("sampler", "batch_sampler"))
        waiting += [x for x in inner if x is not None and not any(x is seen for seen in found)]
    return found


class RolloutData:
    """Windows or points of the full model's own trajectories.

    Arguments:
        rollouts: The trajectories.
        loss: Draws windows for carried exits; None for points.
        seed: Seed of the draws.
        rank: Number of this process.
    """

    def __init__(
        self, rollouts: Rollouts, loss: CarriedLoss | None, seed: int, rank: int = 0
    ) -> None:
        self.rollouts, self.loss, self.seed, self.rank = rollouts, loss, seed, rank

    def next(self, number: int) -> Any:
        """Draws item `number`: `Windows`, or an `Example` without target."""
        numbers = generator(self.seed, "draw", number, self.rank)
        rollout, model = self.rollouts.at_step(number), self.rollouts.model
        if model.plan.batched:
            model.heads.sizes.note(rollout.x.shape[2:])
        count = self.rollouts.sampler.draws
        if self.loss is not None:
            return self.loss.sample(rollout, count, carried_heads(model), numbers)
        count = count if model.plan.batched else 1
        steps = torch.randint(0, rollout.steps, (count,), generator=numbers)
        rows = torch.randint(0, rollout.rows, (count,), generator=numbers)
        call = rollout.at(steps.to(rollout.x.device), rows.to(rollout.x.device))
        return Example(call.args, call.kwargs)

    def place(self) -> dict[str, int]:
        """Nothing: items depend on their number alone."""
        return {}

    def seek(self, place: Mapping[str, int]) -> None:
        """Nothing to do."""


def is_split(data: Any) -> bool:
    """Whether a loader gives each process its own part already."""
    names = {type(data).__name__, type(getattr(data, "sampler", None)).__name__}
    return bool(names & {"DataLoaderShard", "DataLoaderDispatcher", "DistributedSampler"})


def prepared(data: Any, accelerator: Any) -> Any:
    """Splits a DataLoader among the processes; other iterables stay whole."""
    if accelerator.num_processes == 1 or is_split(data) or not isinstance(data, DataLoader):
        return data
    return accelerator.prepare_data_loader(data, device_placement=False)
