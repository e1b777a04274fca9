r"""Layers from a hidden state to a prediction, by where its positions lie in the output.

Patches of it (`Patches`), a grid of its own resolution (`Features`), one vector for all (`Pooled`:
vectors, classes), or nowhere that shapes tell (`Unplaced`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from exitkit.errors import ShapeError
from exitkit.heads.channels import ChannelLinear, ChannelNorm, TimestepLinear
from exitkit.heads.grid import Placement, resize
from exitkit.surgery.spec import HiddenSpec

_WIDEST = 64


class Body(nn.Module, ABC):
    """What the bodies share: how they are called, and the timestep's share of what a layer returns.

    Arguments:
        axis: Index of the channels in the shape of one row of what the layer returns.
        width: Its channels.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
    """

    def __init__(self, axis: int, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.timestep: TimestepLinear | None = None
        if embedding_dim:
            self.timestep = TimestepLinear(axis, embedding_dim, width)

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        """Makes a prediction.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E), or None.
            noisy: Noisy input, with shape (B, *noisy), or None.
            size: Spatial size of the output; that of the example if None.

        Returns:
            The prediction, with shape (B, *output).
        """

    def start(self) -> None:
        """Sets what does not start small, as all weights of the head do."""

    def with_timestep(self, out: Tensor, embedding: Tensor | None) -> Tensor:
        """Adds the timestep's share to what a layer returns, (B, ...)."""
        if self.timestep is None or embedding is None:
            return out
        added: Tensor = self.timestep(embedding, out.dim())
        return out + added


class Patches(Body):
    """LayerNorm, linear, un-patch, 3x3 convolution: the layers that a U-ViT ends in."""

    def __init__(self, hidden: HiddenSpec, placement: Placement, embedding_dim: int) -> None:
        super().__init__(hidden.channel_axis, placement.outputs, embedding_dim)
        self.placement, self.axis = placement, hidden.channel_axis
        self.norm = ChannelNorm(hidden)
        self.linear = ChannelLinear(self.axis, hidden.channels, placement.outputs)
        channels, spatial = placement.output[0], len(placement.output) - 1
        # Packed latents lie in no plane that a convolution could look at.
        packed = placement.kind == "packed"
        self.conv = nn.Identity() if packed else _conv(spatial, channels, channels)

    @override
    def start(self) -> None:
        # Every pixel itself. Behind a linear layer a small random kernel is one factor of a product, and
        # can end as a shift or a ring that descent does not leave again.
        if not isinstance(self.conv, nn.Identity):
            nn.init.dirac_(cast(Tensor, self.conv.weight))

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        values = self.with_timestep(self.linear(self.norm(hidden)), embedding)
        return cast(Tensor, self.conv(self.placement.spread(values, self.axis, size)))


class Features(Body):
    """GroupNorm, SiLU, convolution, resize, and a convolution that sees the noisy input too."""

    def __init__(
        self,
        hidden: HiddenSpec,
        output: tuple[int, ...],
        noisy: tuple[int, ...] | None,
        embedding_dim: int,
    ) -> None:
        width, spatial = min(hidden.channels, _WIDEST), len(output) - 1
        super().__init__(0, width, embedding_dim)
        self.axis, self.size = hidden.channel_axis, output[1:]
        self.norm = ChannelNorm(hidden)
        self.inner = _conv(spatial, hidden.channels, width)
        self.outer = _conv(spatial, width, output[0])
        # Adding a second convolution equals one over the concatenation, which is never built.
        seen = noisy is not None and len(noisy) == len(output)
        self.noisy = _conv(spatial, noisy[0], output[0], bias=False) if seen and noisy else None

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        out = F.silu(self.norm(hidden).movedim(self.axis + 1, 1))
        out = F.silu(self.with_timestep(self.inner(out), embedding))
        size = size or self.size
        out = self.outer(resize(out, size))
        if self.noisy is None:
            return cast(Tensor, out)
        if noisy is None or noisy.dim() != out.dim() or len(noisy) != len(out):
            got = "None" if noisy is None else str(tuple(noisy.shape))
            raise ShapeError(
                f"OwnOutputHead: expected the noisy input ({len(out)}, C, spatial), got {got}. Pass "
                "noisy=x_t, or build the head with noisy=None."
            )
        return cast(Tensor, out + self.noisy(resize(noisy.to(out.dtype), size)))


class Pooled(Body):
    """Mean over positions, LayerNorm, linear."""

    def __init__(self, hidden: HiddenSpec, output: tuple[int, ...], embedding_dim: int) -> None:
        super().__init__(0, math.prod(output), embedding_dim)
        self.axis, self.output = hidden.channel_axis, output
        self.norm = nn.LayerNorm(hidden.channels)
        self.linear = nn.Linear(hidden.channels, math.prod(output))

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        pooled = _mean_over_positions(hidden, self.axis).to(self.linear.weight.dtype)
        out = self.with_timestep(self.linear(self.norm(pooled)), embedding)
        return out.view(-1, *self.output)


class Unplaced(Body):
    """A value for each leading index of the output, and the noisy input scaled by a gain per row.

    What is left where positions have no place in the output: the part of a prediction that is a
    multiple of the input, which at high noise is most of it, and a mean.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        output: tuple[int, ...],
        noisy: tuple[int, ...] | None,
        embedding_dim: int,
    ) -> None:
        width = output[0] + 1
        super().__init__(0, width, embedding_dim)
        self.axis, self.output, self.seen = hidden.channel_axis, output, noisy == output
        self.norm = nn.LayerNorm(hidden.channels)
        self.linear = nn.Linear(hidden.channels, width)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        pooled = _mean_over_positions(hidden, self.axis).to(self.linear.weight.dtype)
        out = self.with_timestep(self.linear(self.norm(pooled)), embedding)
        mean, gain = out[:, :-1], out[:, -1:]
        while mean.dim() < len(self.output) + 1:
            mean, gain = mean.unsqueeze(-1), gain.unsqueeze(-1)
        if self.seen and noisy is not None:
            return mean + gain * noisy.to(mean.dtype)
        return mean.expand(-1, self.output[0], *(size or self.output[1:]))


def _conv(spatial: int, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    layers: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    layer: nn.Module = layers[spatial](inputs, outputs, 3, padding=1, bias=bias)
    return layer


def _mean_over_positions(hidden: Tensor, axis: int) -> Tensor:
    """Mean over all positions, (B, channels)."""
    rows, channels = hidden.shape[0], hidden.shape[axis + 1]
    return hidden.movedim(axis + 1, 1).reshape(rows, channels, -1).mean(dim=2)
