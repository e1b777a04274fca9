r"""Linear maps along time: a carried correction that is solved for instead of trained.

At knots in time (the timesteps of the rollouts it is solved on) a linear map of rank r turns what is
known of a row into the change of its carried value since the last full step:

.. math:: x = [h - h_1, g h, g v_1, \rho (h_1 - h_2), \rho (v_1 - v_2), g], \quad
    g = g_1 / 0.02, \; \rho = g_1 / g_2, \qquad \hat v - v_1 = x A_k B_k

Every entry of x grows with the gap, so that one map serves all gaps. Between knots maps are
interpolated. solve.py finds them; before that all maps are 0: plain reuse.

`python -m benchmarks.carried` measures it beside plain reuse, a perceptron fitted by gradient descent
on the same windows, and fewer sampler steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError

# One of 50 steps, with a whole trajectory as 1: brings gaps to about 1.
STEP = 0.02
# Knots are kept as whole thousandths of a timestep.
_PER_UNIT = 1000
_NONE = -1  # the level of a knot that is not placed


class TimeMaps(nn.Module):
    """Maps at knots in time. They are buffers: no optimiser moves them.

    Arguments:
        widths: Channels of each part of x, without the gap.
        outputs: Channels D of the carried value.
        knots: Most knots K there can be.
        rank: Rank r of the maps, at most D.

    Attributes:
        levels: Timesteps of the knots in thousandths, ascending; -1 where there is no knot. Whole
            numbers, so that half precision does not move them.
        down: First factors, with shape (K, P, r), P the sum of `widths`.
        up: Second factors, with shape (K, r, D).
        offset: What the gap alone adds, with shape (K, D).

    Raises:
        ConfigError: If a number is below 1.
    """

    levels: Tensor
    down: Tensor
    up: Tensor
    offset: Tensor

    def __init__(self, widths: tuple[int, ...], outputs: int, knots: int, rank: int) -> None:
        super().__init__()
        if knots < 1 or rank < 1:
            raise ConfigError(f"TimeMaps: knots={knots}, rank={rank}; both must be at least 1.")
        self.widths, self.rank = widths, min(rank, outputs)
        self.register_buffer("levels", torch.full((knots,), _NONE, dtype=torch.int64))
        self.register_buffer("down", torch.zeros(knots, sum(widths), self.rank))
        self.register_buffer("up", torch.zeros(knots, self.rank, outputs))
        self.register_buffer("offset", torch.zeros(knots, outputs))

    @property
    def knots(self) -> list[float]:
        """Timesteps of the knots on the scale 0..1000, ascending."""
        return [level / _PER_UNIT for level in self.levels.tolist() if level != _NONE]

    def place(self, timesteps: Iterable[float]) -> list[float]:
        """Sets the knots and forgets all maps.

        Arguments:
            timesteps: Timesteps of the rollouts on the scale 0..1000, in any order. If there are more
                than K, K of them are taken, evenly spread.

        Returns:
            The knots, ascending.

        Raises:
            ConfigError: If there are none.
        """
        # Logarithms of noise levels, which some backbones are fed, go below 0.
        found = (round(float(t) * _PER_UNIT) for t in timesteps)
        levels = sorted({0 if level == _NONE else level for level in found})
        if not levels:
            raise ConfigError("TimeMaps: expected at least one timestep.")
        count = min(len(levels), len(self.levels))
        picks = torch.linspace(0, len(levels) - 1, count).round().long().tolist()
        for buffer in (self.down, self.up, self.offset):
            buffer.zero_()
        self.levels.fill_(_NONE)
        self.levels[:count] = torch.tensor([levels[i] for i in picks])
        return self.knots

    def weights(self, t: float) -> list[tuple[int, float]]:
        """Knots around a timestep and their shares, which sum to 1.

        Arguments:
            t: Timestep on the scale 0..1000.

        Returns:
            Pairs (index of the knot, share): one at a knot or outside all of them, else two; none
            if no knots are placed.
        """
        knots = self.knots
        if not knots:
            return []
        if t <= knots[0] or t >= knots[-1]:
            return [(0 if t <= knots[0] else len(knots) - 1, 1.0)]
        high = next(i for i, knot in enumerate(knots) if knot >= t)
        share = (knots[high] - t) / (knots[high] - knots[high - 1])
        pairs = [(high - 1, share), (high, 1 - share)]
        # Samplers' timesteps are not always whole: a knot that is met is met.
        near = [(i, 1.0) for i, s in pairs if s > 0.999]
        return near or pairs

    def forward(self, t: Tensor, parts: list[Tensor], gap: Tensor) -> Tensor:
        """Applies the maps.

        Arguments:
            t: Timesteps on the scale 0..1000, with shape (B,).
            parts: The parts of x without the gap, channels last, (B, ..., width) each.
            gap: Time since the last full step on the scale 0..1, with shape (B,).

        Returns:
            The change of the carried value, channels last, with shape (B, ..., D).
        """
        # Samplers give all rows one timestep: then there is one map to make.
        if bool((t == t[0]).all()):
            return self._at(float(t[0]), parts, gap)
        shape = (*parts[-1].shape[:-1], self.up.shape[-1])
        out = torch.empty(shape, dtype=self.up.dtype, device=self.up.device)
        for level in t.unique():
            rows = (t == level).nonzero().flatten()
            out[rows] = self._at(float(level), [x[rows] for x in parts], gap[rows])
        return out

    def _at(self, t: float, parts: list[Tensor], gap: Tensor) -> Tensor:
        # The factors of two knots cannot be averaged (each is free to turn), their products can.
        pairs = self.weights(t) or [(0, 1.0)]
        out = self._product(pairs[0][0], parts, gap)
        for index, share in pairs[1:]:
            out = torch.lerp(out, self._product(index, parts, gap), share)
        return out

    def _product(self, index: int, parts: list[Tensor], gap: Tensor) -> Tensor:
        down, dtype = self.down[index].split(self.widths), self.down.dtype
        # A sum of products, one for each part: x itself is never built.
        inner = parts[0].to(dtype) @ down[0]
        for x, w in zip(parts[1:], down[1:], strict=True):
            inner = inner + x.to(dtype) @ w
        scale = (gap / STEP).to(dtype).view(-1, *[1] * (inner.dim() - 1))
        out: Tensor = inner @ self.up[index] + scale * self.offset[index]
        return out
