"""Scalars by step: solved at knots in time, interpolated between them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

COLUMNS = 6
"""x, the last clean sample, the forecast's, two divided differences, a constant."""


class StepScalars(nn.Module):
    """Scalars at knots in time, apart for full steps and for steps that are completed.

    Arguments:
        capacity: Most knots of each kind.

    Attributes:
        times: Timesteps of the knots, rising, then infinity; float64, with shape (2, capacity). Entry 0
            is for full steps, 1 for completed ones.
        values: Scalars, float64, with shape (2, capacity, 6).
    """

    times: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.register_buffer("times", torch.full((2, capacity), torch.inf, dtype=torch.float64))
        self.register_buffer("values", torch.zeros(2, capacity, COLUMNS, dtype=torch.float64))

    def place(self, full: bool, solved: Mapping[float, Tensor]) -> None:
        """Sets the scalars of one kind of step; evenly chosen ones, where there are too many.

        Arguments:
            full: Whether they are for full steps.
            solved: Scalars, each with shape (6,), by timestep on the scale 0..1000.
        """
        kind, capacity = 0 if full else 1, self.times.shape[1]
        self.times[kind].fill_(torch.inf)
        self.values[kind].zero_()
        times = sorted(solved)
        if len(times) > capacity:
            picks = torch.linspace(0, len(times) - 1, capacity).round().long().tolist()
            times = [times[i] for i in picks]
        for at, time in enumerate(times):
            self.times[kind, at] = time
            self.values[kind, at] = solved[time].to(self.values)

    def at(self, full: bool, timestep: Tensor) -> Tensor:
        """The scalars of each row, float64, with shape (B, 6); zeros where nothing was solved.

        Arguments:
            full: Whether the step is a full one.
            timestep: Timesteps on the scale 0..1000, with shape (B,).
        """
        times, values = self.times[0 if full else 1], self.values[0 if full else 1]
        t = timestep.double().contiguous()
        last = (times.isfinite().sum() - 1).clamp(min=0)
        right = torch.minimum(torch.searchsorted(times, t), last)
        left = (right - 1).clamp(min=0)
        span = times[right] - times[left]
        share = torch.where(span > 0, (t - times[left]) / span, 1.0).nan_to_num(1.0).clamp(0, 1)
        return torch.lerp(values[left], values[right], share[:, None])
