r"""The carried head: what the skipped blocks did in the row's last full steps, extrapolated.

At an exit after block k the blocks in between are passed over. What they would have handed on, the
value :math:`v` (the rest :math:`h_N - h_k`, or the landing hidden state itself where shapes
differ), is known from the row's last full step (:math:`v_1`, where the exit saw :math:`h_1`) and
from the one before it (:math:`v_2, h_2`):

.. math:: \hat v = v_1 + a \frac{g_1}{g_2} (v_1 - v_2)
    + M([h - h_1, h, v_1, 4(h_1 - h_2), 4(v_1 - v_2)], e(t), g_1, g_2)

with :math:`g_1` the distance in time from the last full step to now, :math:`g_2` that between the
two full steps, :math:`a` one learned number per channel and :math:`M` a perceptron with one hidden
layer.
:math:`a` and M's last layer start at 0: untrained, :math:`\hat v = v_1` exactly, plain reuse.
M's first layer is a sum of linear layers, one for each part, never one over a concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.heads.channels import (
    ChannelLinear,
    TimestepLinear,
    check_embedding,
    check_hidden,
)
from exitkit.heads.grid import resize
from exitkit.surgery.spec import HiddenSpec

# Changes between steps are several times smaller than the states: bring them to one scale.
_DIFFERENCE = 4.0
# The second gap can be tiny; an unbounded ratio would extrapolate to infinity.
_STEEPEST = 8.0


@dataclass(frozen=True)
class CarriedState:
    """What a row keeps from its last two full steps.

    Attributes:
        h1: Hidden state at the exit in the last full step, (B, *hidden.shape).
        v1: Carried value of that step, (B, *carried.shape).
        gap1: Time from that step to now, (B,), at least 0, of about 1 for a whole trajectory.
        h2: Hidden state in the full step before it; None while there was none.
        v2: Carried value of that step; None while there was none.
        gap2: Time between the two full steps, (B,); 0 or None while there was one only.
    """

    h1: Tensor
    v1: Tensor
    gap1: Tensor
    h2: Tensor | None = None
    v2: Tensor | None = None
    gap2: Tensor | None = None


class CarriedHead(nn.Module):
    r"""Predicts what the skipped blocks would have handed on.

    Arguments:
        hidden: Layout of the hidden state at the exit.
        carried: Layout of the hidden state where the row lands.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
        width: Hidden width of the perceptron; the channels of `carried` if None.
        order: 2 looks at the last two full steps, 1 at the last alone.
        relative: The carried value is the rest :math:`h_N - h_k`, and the result
            :math:`h + \hat v`; else the value is the landing state, and the result :math:`\hat v`.

    Raises:
        ShapeError: If `relative` is asked for where the two layouts differ.
        ConfigError: If `order` is neither 1 nor 2.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        carried: HiddenSpec,
        embedding_dim: int,
        width: int | None = None,
        order: int = 2,
        relative: bool = True,
    ) -> None:
        super().__init__()
        if relative and hidden != carried:
            raise ShapeError(
                f"CarriedHead: the rest of a hidden state {hidden.shape} cannot be carried to one "
                f"of shape {carried.shape}. Build the head with relative=False."
            )
        if order not in (1, 2):
            raise ConfigError(f"CarriedHead: order must be 1 or 2, got {order}.")
        self.hidden, self.carried = hidden, carried
        self.embedding_dim, self.order, self.relative = embedding_dim, order, relative
        width = width or carried.channels
        axis = carried.channel_axis

        def part(spec: HiddenSpec, bias: bool = False) -> ChannelLinear:
            return ChannelLinear(spec.channel_axis, spec.channels, width, bias=bias)

        self.change = part(hidden)
        self.state = part(hidden, bias=True)
        self.value = part(carried)
        self.gaps = TimestepLinear(axis, order, width)
        self.timestep = TimestepLinear(axis, embedding_dim, width) if embedding_dim else None
        self.last = ChannelLinear(axis, width, carried.channels, zero=True)
        if order == 2:
            self.past_change, self.past_value = part(hidden), part(carried)
            self.slope = nn.Parameter(torch.zeros(carried.channels))

    def forward(self, h: Tensor, embedding: Tensor | None, state: CarriedState) -> Tensor:
        r"""Predicts the hidden state at the landing boundary.

        Arguments:
            h: Hidden state at the exit, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            state: What the rows keep from their last full steps.

        Returns:
            The hidden state where the row lands, with shape (B, *carried.shape), in its dtype.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for.
        """
        name = "CarriedHead"
        for tensor in (h, state.h1, *([] if state.h2 is None else [state.h2])):
            check_hidden(name, tensor, self.hidden)
        for tensor in (state.v1, *([] if state.v2 is None else [state.v2])):
            check_hidden(name, tensor, self.carried)
        embedding = check_embedding(name, embedding, self.embedding_dim, len(h))
        h2 = state.h1 if state.h2 is None else state.h2
        v2 = state.v1 if state.v2 is None else state.v2
        gap2 = torch.zeros_like(state.gap1) if state.gap2 is None else state.gap2
        v_hat = state.v1 + self._correction(h, embedding, state, h2, v2, gap2).to(state.v1.dtype)
        return h + v_hat if self.relative else v_hat

    def _correction(
        self,
        h: Tensor,
        embedding: Tensor | None,
        state: CarriedState,
        h2: Tensor,
        v2: Tensor,
        gap2: Tensor,
    ) -> Tensor:
        from_h = self.change(h - state.h1) + self.state(h)
        if self.order == 2:
            from_h = from_h + self.past_change(_DIFFERENCE * (state.h1 - h2))
        inner = self._to_landing(from_h) + self.value(state.v1)
        gaps = torch.stack([state.gap1, gap2][: self.order], dim=1)
        inner = inner + self.gaps(gaps, inner.dim())
        if self.timestep is not None and embedding is not None:
            inner = inner + self.timestep(embedding, inner.dim())
        if self.order == 1:
            return torch.as_tensor(self.last(F.gelu(inner)))
        past = state.v1 - v2
        inner = inner + self.past_value(_DIFFERENCE * past)
        ratio = torch.where(gap2 > 0, state.gap1 / gap2.clamp(min=1e-12), 0).clamp(max=_STEEPEST)
        after = len(self.carried.shape) - self.carried.channel_axis - 1
        slope = self.slope.view(-1, *[1] * after) * ratio.view(-1, *[1] * (past.dim() - 1))
        return torch.as_tensor(self.last(F.gelu(inner)) + slope * past)

    def _to_landing(self, from_h: Tensor) -> Tensor:
        """Brings what the exit saw to the landing's grid and layout."""
        if self.hidden.shape == self.carried.shape:
            return from_h
        front = from_h.movedim(self.hidden.channel_axis + 1, 1)
        axis = self.carried.channel_axis
        size = tuple(n for i, n in enumerate(self.carried.shape) if i != axis)
        return resize(front, size).movedim(1, axis + 1)


def drift(h: Tensor, state: CarriedState) -> Tensor:
    """What a carried exit's uncertainty head looks at: how far the row has moved.

    Arguments:
        h: Hidden state at the exit, with shape (B, ...).
        state: What the rows keep from their last full steps.

    Returns:
        Absolute change since the last full step in units of that step's RMS, with shape (B, ...).
    """
    size = state.h1.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12)
    return (h - state.h1).abs() / size.view(-1, *[1] * (h.dim() - 1))
