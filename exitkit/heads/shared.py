"""Output heads of kind `shared`: the backbone's own tail as it is, for all exits."""

from __future__ import annotations

from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.heads.carried.state import CarriedState
from exitkit.heads.kinds import Site, register_kind
from exitkit.heads.own_output import OwnOutputHead
from exitkit.heads.tail import Tail


class SharedHead(nn.Module):
    """Hands the hidden state to the backbone's tail as it is (AdaDiff's released code)."""

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        """Returns `hidden`, (B, ...), itself; nothing else is used."""
        return hidden


@register_kind
class Shared(Tail):
    """Lands where `tail` does."""

    name = "shared"

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        return SharedHead() if site.landing is not None else OwnOutputHead.at(site)
