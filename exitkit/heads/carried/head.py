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

With `knots` the correction is a set of linear maps along time instead (time_maps.py), which solve.py
finds in seconds from rollouts of the full model; it is several times closer, and cheaper to run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.heads.carried.state import CarriedState, FullStep
from exitkit.heads.carried.time_maps import STEP, TimeMaps
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
# Measured: with half the channels as rank the maps lose little, and more channels do not need more.
_RANK = 64


class CarriedHead(nn.Module):
    r"""Predicts what the skipped blocks would have handed on.

    Arguments:
        hidden: Layout of the hidden state at the exit.
        carried: Layout of the hidden state where the row lands.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
        width: Hidden width of the perceptron, the channels of `carried` if None; with `knots` the
            rank of the maps, half the channels but at most 64 if None.
        order: 2 looks at the last two full steps, 1 at the last alone.
        relative: The carried value is the rest :math:`h_N - h_k`, and the result
            :math:`h + \hat v`; else the value is the landing state, and the result :math:`\hat v`.
        knots: 0 for the perceptron, fitted by gradient descent; else the most knots of linear maps
            along time, to be solved for (as many as a trajectory has steps is best).

    Attributes:
        maps: The linear maps, or None.

    Raises:
        ShapeError: If `relative` is asked for where the two layouts differ.
        ConfigError: If `order` is neither 1 nor 2, or `knots` negative.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        carried: HiddenSpec,
        embedding_dim: int,
        width: int | None = None,
        order: int = 2,
        relative: bool = True,
        knots: int = 0,
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
        self.maps: TimeMaps | None = None
        if knots:
            d, c = hidden.channels, carried.channels
            widths = (d, d, c) if order == 1 else (d, d, c, d, c)
            self.maps = TimeMaps(widths, c, knots, width or min(_RANK, max(1, c // 2)))
            return
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

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        r"""Predicts the hidden state at the landing boundary.

        Arguments:
            hidden: Hidden state at the exit, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            noisy: Not used.
            state: What the rows keep from their last full steps.

        Returns:
            The hidden state where the row lands, with shape (B, *carried.shape), in its dtype.

        Raises:
            ConfigError: If no state is given.
            ShapeError: If an argument does not have the shape the head was built for.
        """
        name = "CarriedHead"
        if state is None:
            raise ConfigError(
                f"{name}: there is nothing to carry without a state. Pass state=CarriedState."
                "between(now, last, before), or run the model in `with model.trajectory():`."
            )
        for tensor in (hidden, state.last.h, state.before.h):
            check_hidden(name, tensor, self.hidden)
        for tensor in (state.last.v, state.before.v):
            check_hidden(name, tensor, self.carried)
        embedding = check_embedding(name, embedding, self.embedding_dim, len(hidden))
        if self.maps is None:
            moved = self._correction(hidden, embedding, state)
        else:
            moved = self.maps(state.timestep, self.parts(hidden, state), state.gap1)
            moved = moved.movedim(-1, self.carried.channel_axis + 1)
        return self.landing_of(hidden, state.last.v + moved.to(state.last.v.dtype))

    def value_of(self, h: Tensor, landing: Tensor) -> Tensor:
        """The carried value of a full step.

        Arguments:
            h: Hidden state at the exit, with shape (B, *hidden.shape).
            landing: Hidden state where the row lands, with shape (B, *carried.shape).

        Returns:
            The rest between the two, or the landing state itself, with shape (B, *carried.shape).
        """
        return landing - h if self.relative else landing

    def fits(self, h: Tensor, landing: Tensor) -> bool:
        """Whether there is a rest between two hidden states; another form of call may change their size."""
        return not self.relative or h.shape == landing.shape

    def landing_of(self, h: Tensor, value: Tensor) -> Tensor:
        """Inverse of `value_of`: where a row lands with a carried value."""
        return h + value if self.relative else value

    def full_step(self, h: Tensor, landing: Tensor, timestep: Tensor) -> FullStep:
        """What a full step leaves.

        Arguments:
            h: Hidden state at the exit, with shape (B, *hidden.shape).
            landing: Hidden state where the row lands, with shape (B, *carried.shape).
            timestep: Its timestep on the scale 0..1000, with shape (B,).
        """
        return FullStep(h, self.value_of(h, landing), timestep)

    def parts(self, h: Tensor, state: CarriedState) -> list[Tensor]:
        """What the maps go by: the parts of x (time_maps.py) without the gap.

        Arguments:
            h: Hidden state at the exit, with shape (B, *hidden.shape).
            state: What the rows keep from their last full steps.

        Returns:
            The parts on the landing's grid, channels last, with shape (B, ..., width) each.
        """
        # Float32 at least: differences of half-precision states would keep few digits.
        h, h1, v1 = (x if x.dtype == torch.float64 else x.float() for x in (h, *_pair(state.last)))
        gap = state.gap1.to(h.dtype)

        def times(x: Tensor, scale: Tensor) -> Tensor:
            return x * scale.view(-1, *[1] * (x.dim() - 1))

        growth = gap / STEP
        parts = [self._to_landing(h - h1, v1), self._to_landing(times(h, growth), v1)]
        parts.append(times(v1, growth))
        if self.order == 2:
            h2, v2 = (x.to(h.dtype) for x in _pair(state.before))
            ratio = _ratio(gap, state.gap2)
            parts += [self._to_landing(times(h1 - h2, ratio), v1), times(v1 - v2, ratio)]
        return [x.movedim(self.carried.channel_axis + 1, -1) for x in parts]

    def _correction(self, h: Tensor, embedding: Tensor | None, state: CarriedState) -> Tensor:
        """What the perceptron adds to the last value."""
        (h1, v1), (h2, v2) = _pair(state.last), _pair(state.before)
        from_h = self.change(h - h1) + self.state(h)
        if self.order == 2:
            from_h = from_h + self.past_change(_DIFFERENCE * (h1 - h2))
        inner: Tensor = self._to_landing(from_h, v1) + self.value(v1)
        gap1, gap2 = state.gap1, state.gap2
        inner = inner + self.gaps(torch.stack([gap1, gap2][: self.order], dim=1), inner.dim())
        if self.timestep is not None and embedding is not None:
            inner = inner + self.timestep(embedding, inner.dim())
        if self.order == 1:
            only: Tensor = self.last(F.gelu(inner))
            return only
        past = v1 - v2
        inner = inner + self.past_value(_DIFFERENCE * past)
        out: Tensor = self.last(F.gelu(inner))
        after = len(self.carried.shape) - self.carried.channel_axis - 1
        ratio = _ratio(gap1, gap2).view(-1, *[1] * (past.dim() - 1))
        return out + self.slope.view(-1, *[1] * after) * ratio * past

    def _to_landing(self, from_h: Tensor, value: Tensor) -> Tensor:
        """Brings what the exit saw to the grid and the layout of the carried value."""
        if self.hidden.shape == self.carried.shape:
            return from_h
        front = from_h.movedim(self.hidden.channel_axis + 1, 1)
        axis = self.carried.channel_axis + 1
        size = tuple(n for i, n in enumerate(value.shape) if i not in (0, axis))
        if front.ndim - 2 != len(
            size
        ):  # a sequence and the pairs of its entries: the mean everywhere
            mean = front.flatten(2).mean(dim=2)
            front = mean.view(*mean.shape, *[1] * len(size)).expand(-1, -1, *size)
        return resize(front, size).movedim(1, axis)


def _ratio(gap1: Tensor, gap2: Tensor) -> Tensor:
    """The last gap in units of the one before it, (B,); 0 where there was none before."""
    gap2 = gap2.to(gap1.dtype)
    return torch.where(gap2 > 0, gap1 / gap2.clamp(min=1e-12), 0).clamp(max=_STEEPEST)


def _pair(step: FullStep) -> tuple[Tensor, Tensor]:
    return step.h, step.v
