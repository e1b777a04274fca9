"""What figures are drawn from: errors of exits, uncertainty maps and depths, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerErrors:
    """Error of every exit along the full model's trajectory.

    Attributes:
        timesteps: (steps,), in the order of sampling.
        error: (steps, K), root mean square gap to the full output, over the full output's own root
            mean square, mean over samples; 0 is perfect, 1 is as bad as predicting zero.
        paths: (K,), dotted path of the block before each exit.
        seeds: Number of samples behind each value.
    """

    timesteps: tuple[float, ...]
    error: Tensor
    paths: tuple[str, ...]
    seeds: int

    def bands(self, count: int = 4) -> list[tuple[float, float, Tensor]]:
        """Mean error by exit in equal parts of the trajectory.

        Arguments:
            count: Number of parts.

        Returns:
            (highest timestep, lowest timestep, (K,) errors) for each part.
        """
        parts = torch.arange(len(self.timesteps)).tensor_split(min(count, len(self.timesteps)))
        return [
            (self.timesteps[int(p[0])], self.timesteps[int(p[-1])], self.error[p].mean(dim=0))
            for p in parts
        ]


@dataclass(frozen=True)
class UncertaintyMaps:
    """What one exit's uncertainty head says at a few steps, and what it should have said.

    Attributes:
        timesteps: (moments,), in the order of sampling.
        noisy: (moments, n, *shape), the sampler's state.
        predicted: (moments, n, *shape) in [0, 1].
        actual: (moments, n, *shape), tanh of the gap between the exit's output and the full one, in
            units of the full one's root mean square where the heads were fitted to that.
        path: Dotted path of the block before the exit.
    """

    timesteps: tuple[float, ...]
    noisy: Tensor
    predicted: Tensor
    actual: Tensor
    path: str


@dataclass(frozen=True)
class DepthMap:
    """How much of the network each sample ran at each step.

    Attributes:
        timesteps: (steps,), in the order of sampling.
        share: (steps, n) in [0, 1], executed blocks over all blocks.
    """

    timesteps: tuple[float, ...]
    share: Tensor
