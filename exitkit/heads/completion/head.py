r"""Completes a step of a row without the backbone, and corrects the steps that it ran.

At a step that is passed over, a quantity (noise, clean sample or velocity) is the line through the
row's last two full steps, on the fresh noisy input. At every step, full ones too, the prediction is
then moved by

.. math:: c_1 x + c_2 D_1 + c_3 \hat D + c_4 D_{12} + c_5 D_{23} + c_6

with the last clean sample :math:`D_1`, the forecast's :math:`\hat D` (none at a full step), the divided
differences of the last three in log-SNR, and six scalars by step (solve.py). The same scalars hold for
every branch of guidance, whose weights sum to 1: moving each branch moves the mixture alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from exitkit.heads.completion.noise_levels import NoiseLevels, Quantity
from exitkit.heads.completion.state import CompletionState
from exitkit.heads.completion.step_scalars import COLUMNS, StepScalars
from exitkit.heads.fitted import Fitted

MULTIPLICATIONS = 16
"""Of one entry of a prediction, the forecast included."""


class CompletionHead(Fitted):
    """Forecasts and corrects predictions.

    Arguments:
        quantity: What is a line through the last two full steps.
        along: In what it is a line: the timestep, or the log-SNR.
        knots: Most scalars along time of each kind of step.
    """

    def __init__(
        self,
        quantity: Quantity = "noise",
        along: Literal["time", "log_snr"] = "time",
        knots: int = 100,
    ) -> None:
        super().__init__()
        self.forecast_of, self.along = quantity, along
        self.levels, self.scalars = NoiseLevels(), StepScalars(knots)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Only the device follows the backbone: scalars and levels are no good in half precision.
        own: Any = super()
        return own._apply(lambda t: t.to(fn(t.new_zeros(0)).device), recurse)

    def forecast(self, noisy: Tensor, timestep: Tensor, state: CompletionState) -> Tensor:
        """The prediction of a step that the backbone does not run.

        Arguments:
            noisy: Noisy input now, with shape (B, ...).
            timestep: Timestep now on the scale 0..1000, with shape (B,).
            state: The rows' last full steps, two of each at least.

        Returns:
            The prediction, with shape (B, ...), in the shape of those that the state keeps.
        """
        last, before, _ = state.steps
        own = self.levels.kind[1]
        x = _like(noisy, last.prediction)
        places = [self._place(t) for t in (timestep, last.timestep, before.timestep)]
        share = (places[0] - places[1]) / (places[1] - places[2])

        def value(noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
            x, mean = _like(noisy, prediction), _mean(noisy, prediction)
            if own == self.forecast_of:
                return mean
            return self.levels.quantity(x, self.levels.clean(x, mean, own, t), self.forecast_of, t)

        newest = value(last.noisy, last.prediction, last.timestep)
        older = value(before.noisy, before.prediction, before.timestep)
        line = newest + share.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) * (newest - older)
        if own != self.forecast_of:
            clean = self.levels.clean(x, line, self.forecast_of, timestep)
            line = self.levels.quantity(x, clean, own, timestep)
        return _with_mean(last.prediction, line)

    def _place(self, timestep: Tensor) -> Tensor:
        return timestep.double() if self.along == "time" else self.levels.log_snr(timestep)

    def columns(
        self, noisy: Tensor, timestep: Tensor, state: CompletionState, forecast: Tensor | None
    ) -> list[Tensor]:
        """What the scalars multiply, but for the constant.

        Arguments:
            noisy: Noisy input now, with shape (B, ...).
            timestep: Timestep now on the scale 0..1000, with shape (B,).
            state: The rows' last full steps; this one among them if it is one.
            forecast: The prediction of a step that is completed, with shape (B, ...); None at a full one.

        Returns:
            Five tensors in the shape of the prediction's mean; zeros where a row has had too few full steps.
        """
        x = _like(noisy, state.steps[0].prediction)
        own, cleans, places = self.levels.kind[1], [], []
        for step in state.steps:
            given, mean = _like(step.noisy, step.prediction), _mean(step.noisy, step.prediction)
            cleans.append(self.levels.clean(given, mean, own, step.timestep))
            places.append(self.levels.log_snr(step.timestep))
        if forecast is None:
            guess = torch.zeros_like(x)
        else:
            guess = self.levels.clean(x, _mean(noisy, forecast), own, timestep)
        slopes = []
        for at in (0, 1):
            span = places[at] - places[at + 1]
            known = (state.count > at + 1) & (span != 0)
            scale = torch.where(known, 1 / torch.where(known, span, 1.0), 0.0).to(x.dtype)
            change = cleans[at] - cleans[at + 1]
            slopes.append(change * scale.view(-1, *[1] * (x.ndim - 1)))
        return [x, cleans[0], guess, *slopes]

    def corrected(
        self,
        prediction: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        state: CompletionState,
        full: bool,
    ) -> Tensor:
        """Moves predictions by the scalars of their step.

        Arguments:
            prediction: The backbone's, or the forecast, with shape (B, ...).
            noisy: Noisy input now, with shape (B, ...).
            timestep: Timestep now on the scale 0..1000, with shape (B,).
            state: The rows' last full steps; this one among them if it is one.
            full: Whether it is a full step.

        Returns:
            The prediction, in its own dtype.
        """
        mean = _mean(noisy, prediction)
        columns = self.columns(noisy, timestep, state, None if full else prediction)
        scalars = self.scalars.at(full, timestep).to(columns[0].dtype)
        moved = mean + moves(columns, scalars)
        return _with_mean(prediction, moved)


def moves(columns: list[Tensor], scalars: Tensor) -> Tensor:
    """What scalars, (B, 6) or (6,), make of columns of shape (B, ...): a tensor of their shape."""
    shape = (-1, *[1] * (columns[0].ndim - 1))
    by_column = scalars.expand(len(columns[0]), COLUMNS).unbind(1)
    total = by_column[-1].view(shape).expand_as(columns[0])
    for column, scalar in zip(columns, by_column[:-1], strict=True):
        total = total + scalar.view(shape) * column
    return total


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _mean(noisy: Tensor, prediction: Tensor) -> Tensor:
    """A prediction without the channels of a learned variance."""
    return _wide(prediction[:, : noisy.shape[1]])


def _like(noisy: Tensor, prediction: Tensor) -> Tensor:
    """A noisy input without the channels that nobody predicts, such as masks."""
    return _wide(noisy[:, : prediction.shape[1]])


def _with_mean(prediction: Tensor, mean: Tensor) -> Tensor:
    """A prediction with another mean, in its dtype."""
    moved = mean.to(prediction.dtype)
    rest = prediction[:, mean.shape[1] :]
    return torch.cat([moved, rest], dim=1) if rest.shape[1] else moved
