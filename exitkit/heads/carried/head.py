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

With `knots` the correction is a set of linear maps along time instead (maps.py), which `solve` finds
in seconds from walks of the full model; it is several times closer, and cheaper to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.heads.carried.time_maps import STEP, MapSolver, TimeMaps
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
        timestep: Timestep of now on the scale 0..1000, (B,); 0 if None. Maps along time need it.
    """

    h1: Tensor
    v1: Tensor
    gap1: Tensor
    h2: Tensor | None = None
    v2: Tensor | None = None
    gap2: Tensor | None = None
    timestep: Tensor | None = None


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
            along time, to be found by `solve` (as many as a trajectory has steps is best).

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
        if self.maps is None:
            moved = self._correction(h, embedding, state, h2, v2, gap2)
        else:
            t = torch.zeros_like(state.gap1) if state.timestep is None else state.timestep
            moved = self.maps(t, self._parts(h, state), state.gap1)
            moved = moved.movedim(-1, self.carried.channel_axis + 1)
        v_hat = state.v1 + moved.to(state.v1.dtype)
        return h + v_hat if self.relative else v_hat

    @torch.no_grad()
    def solve(
        self,
        timesteps: Sequence[float],
        windows: Callable[[float], Iterable[tuple[Tensor, CarriedState, Tensor]]],
        ridge: float = 1e-6,
    ) -> list[float]:
        r"""Finds the maps in closed form; no gradient descent is needed, before or after.

        Arguments:
            timesteps: Timesteps of the walks on the scale 0..1000.
            windows: Gives the windows whose "now" is at a timestep, in groups of rows with the same
                gaps: hidden state at the exit (B, ...), what was kept, and the hidden state where
                the full model lands (B, ...). Asked once a timestep and knot, so that one group at
                a time is in memory. Gaps as often as they will occur at inference are best.
            ridge: Penalty relative to the size of each entry of x, above 0.

        Returns:
            By knot, in ascending order of time: what remains of plain reuse's squared error.

        Raises:
            ConfigError: If the head was built without `knots`.
            NonFiniteError: If a window is not finite.
            CalibrationError: If the penalty is not above 0.
        """
        if self.maps is None:
            raise ConfigError("CarriedHead: built without maps. Build it with knots=50, say.")
        remains = []
        for index in range(len(self.maps.place(timesteps))):
            solver = MapSolver(self.maps, index)
            for t in timesteps:
                share = dict(self.maps.weights(float(t))).get(index, 0.0)
                for h, state, landing in windows(float(t)) if share else ():
                    change = (landing - h if self.relative else landing) - state.v1
                    change = change.movedim(self.carried.channel_axis + 1, -1)
                    solver.add(self._parts(h, state), state.gap1, change, share)
            remains.append(solver.solve(ridge))
        return remains

    def _parts(self, h: Tensor, state: CarriedState) -> list[Tensor]:
        """The parts of x (maps.py) on the landing's grid, channels last."""
        # Float32 at least: differences of half-precision states would keep few digits.
        h, h1, v1 = (x.float() if x.dtype != torch.float64 else x for x in (h, state.h1, state.v1))
        gap = state.gap1.to(h.dtype)

        def times(x: Tensor, scale: Tensor) -> Tensor:
            return x * scale.view(-1, *[1] * (x.dim() - 1))

        growth = gap / STEP
        parts = [self._to_landing(h - h1, v1), self._to_landing(times(h, growth), v1)]
        parts.append(times(v1, growth))
        if self.order == 2:
            h2 = h1 if state.h2 is None else state.h2.to(h.dtype)
            v2 = v1 if state.v2 is None else state.v2.to(h.dtype)
            ratio = _ratio(gap, state.gap2)
            parts += [self._to_landing(times(h1 - h2, ratio), v1), times(v1 - v2, ratio)]
        return [x.movedim(self.carried.channel_axis + 1, -1) for x in parts]

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
        inner = self._to_landing(from_h, state.v1) + self.value(state.v1)
        gaps = torch.stack([state.gap1, gap2][: self.order], dim=1)
        inner = inner + self.gaps(gaps, inner.dim())
        if self.timestep is not None and embedding is not None:
            inner = inner + self.timestep(embedding, inner.dim())
        if self.order == 1:
            return torch.as_tensor(self.last(F.gelu(inner)))
        past = state.v1 - v2
        inner = inner + self.past_value(_DIFFERENCE * past)
        ratio = _ratio(state.gap1, gap2)
        after = len(self.carried.shape) - self.carried.channel_axis - 1
        slope = self.slope.view(-1, *[1] * after) * ratio.view(-1, *[1] * (past.dim() - 1))
        return torch.as_tensor(self.last(F.gelu(inner)) + slope * past)

    def _to_landing(self, from_h: Tensor, value: Tensor) -> Tensor:
        """Brings what the exit saw to the grid and the layout of the carried value."""
        if self.hidden.shape == self.carried.shape:
            return from_h
        front = from_h.movedim(self.hidden.channel_axis + 1, 1)
        axis = self.carried.channel_axis + 1
        size = tuple(n for i, n in enumerate(value.shape) if i not in (0, axis))
        return resize(front, size).movedim(1, axis)


def _ratio(gap1: Tensor, gap2: Tensor | None) -> Tensor:
    """The last gap in units of the one before it, (B,); 0 where there was none before."""
    if gap2 is None:
        return torch.zeros_like(gap1)
    gap2 = gap2.to(gap1.dtype)
    return torch.where(gap2 > 0, gap1 / gap2.clamp(min=1e-12), 0).clamp(max=_STEEPEST)


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
