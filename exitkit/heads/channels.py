"""Layers that act on the channels of a canonical hidden state, whatever its layout.

A canonical hidden state has rows first, then the shape of its `HiddenSpec`: (B, T, D) tokens,
(B, C, H, W) or (B, H, W, C) features, (B, D) vectors. All layers take any number of positions.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.errors import ShapeError
from exitkit.surgery.spec import HiddenSpec


def check_hidden(owner: str, hidden: Tensor, spec: HiddenSpec) -> None:
    """Refuses a hidden state that does not have the shape its head was built for.

    Arguments:
        owner: Name of the head, for the message.
        hidden: The hidden state.
        spec: What the head was built for.

    Raises:
        ShapeError: If dimensions or channels differ from (B, *spec.shape).
    """
    # Positions may change with the resolution; dimensions and channels may not.
    fits = hidden.dim() == len(spec.shape) + 1
    if not fits or hidden.shape[spec.channel_axis + 1] != spec.channels:
        raise ShapeError(
            f"{owner}: expected a hidden state (B, {', '.join(map(str, spec.shape))}) or one of "
            f"another resolution with {spec.channels} channels, got {tuple(hidden.shape)}. Bring the "
            "hidden state to canonical layout, rows first, or wrap again with `example_inputs` like "
            "this input."
        )


def check_embedding(owner: str, embedding: Tensor | None, dim: int, rows: int) -> Tensor | None:
    """Refuses a missing or misshapen timestep embedding.

    Arguments:
        owner: Name of the head, for the message.
        embedding: The embedding (B, E), or None.
        dim: Width E that the head was built for; 0 for a head without timestep.
        rows: B.

    Returns:
        The embedding, or None for a head without timestep.

    Raises:
        ShapeError: If the head needs an embedding and does not get (B, E).
    """
    if dim == 0:
        return None
    if embedding is None or embedding.shape != (rows, dim):
        got = "None" if embedding is None else str(tuple(embedding.shape))
        raise ShapeError(
            f"{owner}: expected a timestep embedding ({rows}, {dim}), got {got}. Pass "
            f"TimestepEmbedding({dim})(t), or build the head with embedding_dim=0."
        )
    return embedding


class ChannelLinear(nn.Module):
    """Linear layer over the channel axis; at every position the same (a 1x1 convolution).

    Arguments:
        channel_axis: Index of the channels in the shape of one row.
        inputs: Channels of the input.
        outputs: Channels of the output.
        bias: Whether there is a bias.
        zero: Start with zero weights and bias.
    """

    def __init__(
        self, channel_axis: int, inputs: int, outputs: int, *, bias: bool = True, zero: bool = False
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        layer = nn.Linear(inputs, outputs, bias=bias)
        self.weight, self.bias = layer.weight, layer.bias
        if zero:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ..., inputs, ...) to (B, ..., outputs, ...) in the dtype of the weights."""
        weight, bias = self.weight, cast(Tensor | None, self.bias)
        if x.dtype != weight.dtype:  # a call of its own, also where it changes nothing
            x = x.to(weight.dtype)
        if self.channel_axis + 2 == x.dim():
            return F.linear(x, weight, bias)
        if self.channel_axis == 0:
            # Channels in front: multiply from the left, no copy of the features to channels-last.
            out = torch.matmul(weight, x.flatten(2)).reshape(len(x), -1, *x.shape[2:])
            return out if bias is None else out + bias.view(-1, *[1] * (x.dim() - 2))
        axis = self.channel_axis + 1
        return F.linear(x.movedim(axis, -1), weight, bias).movedim(-1, axis)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels, or GroupNorm where channels come first (as in CNNs).

    Arguments:
        spec: Layout of the hidden state.
    """

    def __init__(self, spec: HiddenSpec) -> None:
        super().__init__()
        self.norm: nn.Module
        if spec.channel_axis == 0 and len(spec.shape) > 1:
            groups = next(g for g in (32, 16, 8, 4, 2, 1) if spec.channels % g == 0)
            # Groups of one channel at one position would erase it; keep at least four channels.
            while groups > 1 and spec.channels // groups < 4:
                groups //= 2
            self.norm, self.axis = nn.GroupNorm(groups, spec.channels), -1
        else:
            self.norm, self.axis = nn.LayerNorm(spec.channels), spec.channel_axis + 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, *shape), in the dtype of the weights."""
        dtype = cast(Tensor, self.norm.weight).dtype
        x = x if x.dtype == dtype else x.to(dtype)
        if self.axis in (-1, x.dim() - 1):
            return cast(Tensor, self.norm(x))
        return cast(Tensor, self.norm(x.movedim(self.axis, -1))).movedim(-1, self.axis)


class TimestepLinear(nn.Module):
    """What the timestep embedding adds to every position of a hidden state.

    Arguments:
        channel_axis: Index of the channels in the shape of one row.
        embedding_dim: Width E of the embedding, above 0.
        outputs: Channels of the output.
        zero: Start with zero weights.
    """

    def __init__(
        self, channel_axis: int, embedding_dim: int, outputs: int, *, zero: bool = False
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.linear = nn.Linear(embedding_dim, outputs, bias=False)
        if zero:
            nn.init.zeros_(self.linear.weight)

    def forward(self, embedding: Tensor, dims: int) -> Tensor:
        """Maps (B, E) to (B, 1, ..., outputs, ..., 1).

        Arguments:
            embedding: Timestep embedding, with shape (B, E).
            dims: Number of dimensions of what it is added to, rows included.

        Returns:
            The addend, broadcastable over the positions.
        """
        weight = self.linear.weight
        if embedding.dtype != weight.dtype:
            embedding = embedding.to(weight.dtype)
        out = F.linear(embedding, weight)
        return out.view(out.shape[0], *self.addend(dims))

    def addend(self, dims: int) -> tuple[int, ...]:
        """Shape of what is added to one row of something with this many dimensions."""
        after = dims - self.channel_axis - 2
        return (*[1] * self.channel_axis, self.linear.out_features, *[1] * after)
