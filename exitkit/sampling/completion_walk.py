"""What a completion is solved on: trajectories of a sampler, and where they should go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from exitkit.errors import ConfigError
from exitkit.heads.completion.solve import Window
from exitkit.model import ExitModel


def judging(count: int) -> Tensor:
    """Which of some trajectories choose the penalty: the last fourth; all, where they are too few to share.

    Arguments:
        count: Their number.

    Returns:
        Boolean, with shape (count,).
    """
    return torch.arange(count) >= (count - count // 4 if count > 3 else 0)


class CompletionWalk(ABC):
    """Trajectories that go on step by step under the scalars solved so far, the exits suspended.

    Attributes:
        steps: Steps of a trajectory.
        times: Timestep of each step on the scale 0..1000.
        full: Which steps run the backbone, once a walk has begun.
        bar: The progress bar.
    """

    steps: int
    times: list[float]
    full: list[bool]
    bar: tqdm[Any]

    @abstractmethod
    def begin(self, full: list[bool]) -> None:
        """Goes back to the beginning of all trajectories.

        Arguments:
            full: Which steps run the backbone.
        """

    def place(self, step: int) -> tuple[float, bool]:
        """Timestep of a step on the scale 0..1000, and whether the backbone runs in full."""
        return self.times[step], self.full[step]

    @abstractmethod
    def windows(self, step: int) -> Iterable[Window]:
        """All trajectories at a step, to which they have come."""

    @abstractmethod
    def advance(self, step: int, scalars: Tensor) -> None:
        """Goes to the next step with these scalars, (6,)."""

    def end(self) -> None:  # noqa: B027
        """Lets go of the trajectories that are under way."""


class Completable:
    """What a sampler can do for a completion; one that shows no steps of a scheduler can nothing."""

    def completion_walk(
        self, model: ExitModel, seeds: tuple[int, ...], progress: bool
    ) -> CompletionWalk:
        """Trajectories that a completion is solved on.

        Arguments:
            model: The wrapped model, suspended; its completion's noise levels are set.
            seeds: Seeds of the trajectories; every fourth one judges.
            progress: Whether to show a progress bar.

        Raises:
            ConfigError: If the sampler's steps are not linear in the prediction, or it knows no such.
        """
        raise self._without_steps()

    def aimed(self, model: ExitModel, seeds: Tensor) -> Tensor:
        """Samples of the run that a completion aims at.

        Arguments:
            model: The wrapped model, suspended.
            seeds: Seeds of one batch, with shape (B,).

        Returns:
            With shape (B, ...).

        Raises:
            ConfigError: As in `completion_walk`.
        """
        raise self._without_steps()

    def _without_steps(self) -> ConfigError:
        return ConfigError(
            f"fit: completion is solved along the steps of a scheduler, which {type(self).__name__} does "
            "not show. Use ek.Sampler or ek.PipelineSampler, or the preset 'relative'."
        )
