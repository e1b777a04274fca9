"""Data without a data set: the trajectories that the full model itself runs.

Heads are fitted on the inputs that they will meet, and their target is the model's own output, so
nothing but the model and a sampler is needed. A rollout is a function of its seeds, so a run that is
taken up again sees the same ones.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import torch

from exitkit.errors import ConfigError
from exitkit.model import ExitModel, ExitModels, Wrapped, expect_wrapped
from exitkit.sampling.recorder import RolloutRecorder
from exitkit.sampling.rollout import Rollout
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.seeds import FIT, seed_list

FEWEST = 16
"""Trajectories that are kept in memory, however few run together."""

STAY = 32
"""Training steps with one rollout where not all fit into memory."""


class Rollouts(Sequence[Rollout]):
    """Recorded trajectories of the full model: a source of data for `fit` that needs no data.

    Entry i is one branch of guidance of one batch of the sampler. Rollouts are run when they are
    first asked for, without exits, whatever the model's policy.

    Arguments:
        model: The wrapped model. Of several denoisers of a pipeline, one run records all.
        sampler: How trajectories are run: the sampler of inference.
        seeds: Seeds of the trajectories, or their number, counted from 0; as many as the sampler finds
            usual if None (256, of a pipeline 16).
        keep: Batches kept in memory; four, or what holds 16 trajectories, if None.
        dtype: Dtype of what is kept; the backbone's if None. bfloat16 halves the memory.
        hidden: Whether hidden states are kept; if None, where the exits need trajectories.
        progress: Whether to show a progress bar while trajectories run.

    Raises:
        ConfigError: If an argument is out of range, or asks for rows of a packed sequence.
    """

    def __init__(
        self,
        model: Wrapped,
        sampler: SamplerBase,
        seeds: int | Sequence[int] | None = None,
        keep: int | None = None,
        dtype: torch.dtype | None = None,
        hidden: bool | None = None,
        progress: bool = False,
    ) -> None:
        expect_wrapped("Rollouts", model)
        if not isinstance(sampler, SamplerBase):
            raise ConfigError(
                f"Rollouts: expected a sampler, got {type(sampler).__name__}. Say how trajectories are "
                "run, for example ek.Rollouts(model, ek.Sampler('ddim', shape=(3, 32, 32)))."
            )
        if keep is None:
            keep = max(4, -(-FEWEST // sampler.batch_size))
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ConfigError(f"Rollouts: keep={keep!r}; expected a whole number of at least 1.")
        parts = list(model.values()) if isinstance(model, ExitModels) else [model]
        packed = next((part.plan for part in parts if not part.plan.batched), None)
        if packed is not None and sampler.batch_size != 1:
            raise ConfigError(
                f"Rollouts: {packed.class_name} takes one packed sequence a call, so there are no "
                f"rows to stack; the sampler has batch_size={sampler.batch_size}. Give it batch_size=1."
            )
        self.model = cast(ExitModel, model)  # or all of several, until `of` says which
        self.sampler, self.keep, self.dtype = sampler, keep, dtype
        self.seeds = seed_list(sampler.trajectories if seeds is None else seeds, FIT)
        self.hidden = model.heads.kind.needs_trajectory if hidden is None else hidden
        self.progress, self._run_by = progress, model
        size = sampler.batch_size
        self._batches = [self.seeds[i : i + size] for i in range(0, len(self.seeds), size)]
        self._kept: OrderedDict[int, dict[int, list[Rollout]]] = OrderedDict()

    def of(self, model: ExitModel) -> Rollouts:
        """The rollouts of one of several denoisers; what was run is shared.

        Arguments:
            model: One of the models.
        """
        part = copy.copy(self)
        part.__dict__.pop("branches", None)
        part.model = model
        return part

    @cached_property
    def branches(self) -> int:
        """Calls of one evaluation: 2 under guidance, else 1."""
        return len(self._batch(0))

    @property
    def in_memory(self) -> int:
        """How many rollouts stay in memory."""
        return self.branches * min(self.keep, len(self._batches))

    def __len__(self) -> int:
        return self.branches * len(self._batches)

    def __iter__(self) -> Iterator[Rollout]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Rollout number `index`, from memory or run anew; a list of them for a slice.

        Raises:
            IndexError: If there is no such rollout.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not isinstance(index, int) or not -len(self) <= index < len(self):
            raise IndexError(f"rollout {index} of {len(self)}")
        batch, branch = divmod(index % len(self), self.branches)
        return self._batch(batch)[branch]

    def _batch(self, number: int) -> list[Rollout]:
        if number not in self._kept:
            while len(self._kept) >= self.keep:
                self._kept.popitem(last=False)
            self._kept[number] = self.run(number)
        own = self._kept[number].get(id(self.model))
        return own if own is not None else sum(self._kept[number].values(), [])

    def run(self, number: int) -> dict[int, list[Rollout]]:
        """Runs one batch of trajectories with the full model.

        Arguments:
            number: Number of the batch; its seeds decide everything random.

        Returns:
            The rollout of each branch, by identity of the model.

        Raises:
            NonFiniteError: If the model predicts NaN or infinity.
            ConfigError: If the sampler never calls the model.
        """
        recorder = RolloutRecorder(self.dtype, self.hidden)
        batch = self._batches[number]
        doing = f"record {number + 1} of {len(self._batches)}"
        self.sampler.run(self._run_by, batch, record=recorder, progress=self.progress, doing=doing)
        models = self._run_by.values() if isinstance(self._run_by, ExitModels) else [self._run_by]
        found = {id(model): recorder.rollouts(model) for model in models}
        missed = [model.plan.class_name for model in models if not found[id(model)]]
        if missed:
            raise ConfigError(
                f"Rollouts: the sampler never called {' and '.join(missed)}, so nothing was recorded. "
                "Does the wrapped model belong to it, and does it make enough steps?"
            )
        return found

    def at_step(self, step: int) -> Rollout:
        """The rollout that training step `step` (from 0) draws from."""
        stay = 1 if self.in_memory == len(self) else STAY
        rollout: Rollout = self[(step // stay) % len(self)]
        return rollout
