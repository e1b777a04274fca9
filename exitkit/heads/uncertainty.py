r"""Uncertainty heads: the paper's uncertainty estimation module (UEM).

AdaDiff eq. 7: :math:`u_{i,t} = \sigma(w_i^T [h_{i,t}, e(t)] + b_i)`, one linear layer per exit on
the hidden state :math:`h` and the timestep embedding :math:`e`. The concatenation is never built:
:math:`w^T [h, e] = w_h^T h + w_e^T e`, which is equal and costs one row of work per sample for the
timestep instead of one per token.

Where the positions of the hidden state have a place in the output, :math:`u` is a map with the
output's shape (tokens are un-patched, features shuffled to pixels); else one value per position.

A head starts at :math:`u = 1/2`, where the sigmoid is steepest and the weight :math:`1 - u` of eq. 11
lets the exits learn from the first step. Until it is fitted, a run reads 1 instead
(`HeadRunner.uncertainty`), so that no row leaves on its word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from exitkit.errors import ConfigError, ShapeError, suggest
from exitkit.heads.channels import (
    ChannelLinear,
    TimestepLinear,
    check_embedding,
    check_hidden,
)
from exitkit.heads.fitted import Fitted
from exitkit.heads.grid import frames_first, place, swapped
from exitkit.surgery.spec import HiddenSpec

Reduction = Literal["mean", "max", "quantile"]
_REDUCTIONS = get_args(Reduction)


class UncertaintyHead(Fitted):
    r"""Predicts how far an exit's output will be from its target.

    Starts at weights and bias 0, hence at 1/2 for everything.

    References:
        | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
          (Tang et al., 2023), eq. 7
        | https://arxiv.org/abs/2309.17074

    Arguments:
        hidden: Layout of the hidden state.
        output: Shape of the backbone's prediction without rows, or (classes,).
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
        kind: `map` for one value per output element (or per position), `scalar` for one per row.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        output: tuple[int, ...],
        embedding_dim: int,
        kind: Literal["map", "scalar"] = "map",
    ) -> None:
        super().__init__()
        self.hidden, self.embedding_dim = hidden, embedding_dim
        self.frames_first = frames_first(hidden, output)
        lain = swapped(output) if self.frames_first else output
        self.placement = place(hidden, lain) if kind == "map" else None
        # Vectors and classes have no map to draw: one value a row.
        self.pooled = kind == "scalar" or len(output) == 1 or len(hidden.shape) == 1
        width = 1 if self.placement is None else self.placement.outputs
        self.linear = ChannelLinear(hidden.channel_axis, hidden.channels, width, zero=True)
        self.timestep: TimestepLinear | None = None
        if embedding_dim:
            self.timestep = TimestepLinear(hidden.channel_axis, embedding_dim, width, zero=True)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        size: tuple[int, ...] | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        r"""Predicts the uncertainty :math:`u`.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            size: Spatial size of the output, where the input has another resolution than the
                example had.
            shift: What the timestep adds, where `TimestepShifts` has made it of the embedding.

        Returns:
            :math:`u` in [0, 1], at least float32: the map (B, *output), one value per position
            (B, T), or (B,) for scalars, vectors and classes.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for.
        """
        check_hidden("UncertaintyHead", hidden, self.hidden)
        if shift is None and self.timestep is not None:
            rows, dim = hidden.shape[0], self.embedding_dim
            given = check_embedding("UncertaintyHead", embedding, dim, rows)
            shift = self.timestep(given, hidden.dim())
        return self.read(hidden, shift, size)

    def read(
        self, hidden: Tensor, shift: Tensor | None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        r"""Predicts the uncertainty without looking at the arguments, as runs do at every exit.

        Beside small blocks the checks and torch's module calls cost more than the layer.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            shift: What the timestep adds; None without a timestep.
            size: Spatial size of the output, where it is not the example's.

        Returns:
            :math:`u`, as `forward` returns it.
        """
        logits: Tensor = self.linear.forward(hidden)
        if shift is not None:
            logits = logits + shift
        # Half precision has steps of 0.004 near 1: thresholds would fall between its values.
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.pooled:
            return logits.flatten(1).mean(dim=1).sigmoid()
        if self.placement is None:
            return logits.flatten(1).sigmoid()
        u = self.placement.spread(logits, self.hidden.channel_axis, size).sigmoid()
        return u.transpose(1, 2) if self.frames_first else u


class TimestepShifts:
    """What the timestep adds in each of several heads, from one matrix product.

    Arguments:
        heads: The heads: all of them have a timestep, or none has.
    """

    def __init__(self, heads: Iterable[UncertaintyHead]) -> None:
        heads = list(heads)
        timed = [(head.timestep, len(head.hidden.shape) + 1) for head in heads if head.timestep]
        self._linears = [layer.linear for layer, _ in timed]
        self._shapes = [layer.addend(dims) for layer, dims in timed]
        self._alike = len(set(self._shapes)) == 1
        self._none = (None,) * len(heads)

    def __call__(self, embedding: Tensor) -> Sequence[Tensor | None]:
        """Makes them.

        Arguments:
            embedding: Timestep embedding, with shape (B, E).

        Returns:
            For each head the `shift` of its forward, with shape (B, 1, ..., outputs, ..., 1); None
            without a timestep.
        """
        if not self._linears:
            return self._none
        weights = [linear.weight for linear in self._linears]
        if embedding.dtype != weights[0].dtype:
            embedding = embedding.to(weights[0].dtype)
        shifts, rows = F.linear(embedding, torch.cat(weights)), embedding.shape[0]
        if self._alike:  # one view instead of one for each
            return shifts.view(rows, len(weights), *self._shapes[0]).unbind(1)
        parts = shifts.split([len(weight) for weight in weights], dim=1)
        return [part.view(rows, *shape) for part, shape in zip(parts, self._shapes, strict=True)]


def reduce(u: Tensor, how: Reduction = "mean", q: float = 0.9) -> Tensor:
    """Reduces an uncertainty map to one value a row.

    Arguments:
        u: Uncertainty in [0, 1], with shape (B, ...).
        how: `mean`, `max`, or `quantile` with linear interpolation.
        q: The quantile, in [0, 1].

    Returns:
        Uncertainty with shape (B,).

    Raises:
        ConfigError: If `how` is unknown or `q` out of range.
        ShapeError: If `u` has no row axis.

    Example:
        >>> reduce(torch.tensor([[0.0, 0.5, 1.0]]), "quantile", q=0.75)
        tensor([0.7500])
    """
    if u.dim() == 0:
        raise ShapeError("reduce: expected uncertainty (B, ...), got a scalar. Pass u[None].")
    if how not in _REDUCTIONS:
        raise ConfigError(
            f"reduce: there is no reduction {how!r} (mean, max, quantile)."
            f"{suggest(how, _REDUCTIONS)}"
        )
    if not 0 <= q <= 1:
        raise ConfigError(f"reduce: the quantile must lie in [0, 1], got q={q}. Try q=0.9.")
    if u.dim() == 1:
        return u
    u = u.flatten(1)
    if how == "mean":
        return u.sum(dim=1).div_(u.shape[1])  # the mean of a CPU, in half of its time
    if how == "max":
        return u.amax(dim=1)
    # torch.quantile refuses maps of more than 16 million elements.
    position = q * (u.shape[1] - 1)
    below = math.floor(position)
    low = u.kthvalue(below + 1, dim=1).values
    high = u.kthvalue(min(below + 2, u.shape[1]), dim=1).values
    return low + (high - low) * (position - below)
