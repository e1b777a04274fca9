r"""Output heads that end in hidden space: the backbone's own tail makes the output from them.

`TailTranslator` moves the hidden state of an exit to where the tail expects it, `SharedTail` leaves
it as it is. Exits that make their output themselves carry an `AttachedHead` (attached.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from exitkit.heads.channels import (
    ChannelLinear,
    ChannelNorm,
    TimestepLinear,
    check_embedding,
    check_hidden,
)
from exitkit.surgery.spec import HiddenSpec


class TailTranslator(nn.Module):
    r"""Moves a hidden state to where the backbone's tail expects it.

    :math:`h + W \mathrm{norm}(h) + W_e e(t) + b`, with :math:`W, W_e, b` at 0 in the beginning: the
    untrained translator is the identity, bit for bit. The norm is a LayerNorm, for channels-first
    features a GroupNorm.

    Arguments:
        hidden: Layout of the hidden state.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
    """

    def __init__(self, hidden: HiddenSpec, embedding_dim: int) -> None:
        super().__init__()
        self.hidden, self.embedding_dim = hidden, embedding_dim
        axis, channels = hidden.channel_axis, hidden.channels
        self.norm = ChannelNorm(hidden)
        self.linear = ChannelLinear(axis, channels, channels, zero=True)
        self.timestep: TimestepLinear | None = None
        if embedding_dim:
            self.timestep = TimestepLinear(axis, embedding_dim, channels, zero=True)

    def forward(self, hidden: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Translates.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.

        Returns:
            Hidden state of the same shape and dtype.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for.
        """
        check_hidden("TailTranslator", hidden, self.hidden)
        embedding = check_embedding("TailTranslator", embedding, self.embedding_dim, len(hidden))
        moved: Tensor = self.linear(self.norm(hidden))
        if self.timestep is not None and embedding is not None:
            moved = moved + self.timestep(embedding, moved.dim())
        return hidden + moved.to(hidden.dtype)


class SharedTail(nn.Module):
    """Hands the hidden state to the backbone's tail as it is (AdaDiff's released code)."""

    def forward(self, hidden: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Returns `hidden`, (B, ...), itself; `embedding` is not used."""
        return hidden
