r"""Output heads of kind `tail`: the backbone's own tail makes the output, after a translation.

Where hidden states change shape there is no tail to reach, and exits make their output themselves
(own_output.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.heads.carried.state import CarriedState
from exitkit.heads.channels import (
    ChannelLinear,
    ChannelNorm,
    TimestepLinear,
    check_embedding,
    check_hidden,
)
from exitkit.heads.kinds import OutputKind, Site, register_kind
from exitkit.heads.own_output import OwnOutputHead
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan


class TailHead(nn.Module):
    r"""Moves a hidden state to where the backbone's tail expects it.

    :math:`h + W \mathrm{norm}(h) + W_e e(t) + b`, with :math:`W, W_e, b` at 0 in the beginning: the
    untrained head is the identity, bit for bit. The norm is a LayerNorm, for channels-first
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

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        """Translates.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            noisy: Not used.
            state: Not used.

        Returns:
            Hidden state of the same shape and dtype.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for.
        """
        check_hidden("TailHead", hidden, self.hidden)
        embedding = check_embedding("TailHead", embedding, self.embedding_dim, len(hidden))
        # Torch's module calls would cost more than these layers beside small blocks.
        moved = self.linear.forward(self.norm.forward(hidden))
        if self.timestep is not None and embedding is not None:
            moved = moved + self.timestep.forward(embedding, moved.dim())
        return hidden + moved.to(hidden.dtype)


@register_kind
class Tail(OutputKind):
    """Lands at the end of the network, where the hidden state fits there."""

    name = "tail"
    through_tail = True

    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        return plan.num_stages if at.lands else None

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        if site.landing is None:
            return OwnOutputHead.at(site)
        return TailHead(site.hidden, site.embedding_dim)
