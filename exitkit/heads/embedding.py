r"""Sinusoidal embedding of the timestep, the second input of the heads (AdaDiff eq. 7's t).

For a timestep :math:`t` on the usual scale 0..1000 and :math:`j < E/2`,

.. math:: e_j(t) = \cos(t \, \omega_j), \quad e_{E/2+j}(t) = \sin(t \, \omega_j), \quad
    \omega_j = 10000^{-2j/E}.

It has no parameters. Heads turn it into what they add with one linear layer of their own, so that
the concatenation of eq. 7 is never built: :math:`W [h, e] = W_h h + W_e e`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from exitkit.errors import ShapeError

_LONGEST_PERIOD = 10_000.0


class TimestepEmbedding(nn.Module):
    """Embeds timesteps as cosines and sines of falling frequency.

    Arguments:
        dim: Width :math:`E` of the embedding, even; 0 gives an embedding without columns (for
            backbones that have no timestep).

    Raises:
        ShapeError: If `dim` is odd or negative.

    Example:
        >>> TimestepEmbedding(4)(torch.tensor([0.0])).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        if dim < 0 or dim % 2:
            raise ShapeError(
                f"TimestepEmbedding: expected an even width, got dim={dim} (half of it are "
                f"cosines, half sines). Pass UncertaintyConfig(embedding_dim={max(2, dim + 1)})."
            )
        self.dim = dim
        # By dtype and device, as they are asked for; no buffer, which `half` would round.
        self._frequencies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def forward(self, t: Tensor) -> Tensor:
        """Embeds one timestep a row.

        Arguments:
            t: Timesteps on the scale 0..1000, integer or fractional, with shape (B,).

        Returns:
            The embedding in [-1, 1], with shape (B, E), float64 for float64 timesteps, else float32
            (half precision cannot tell neighbouring timesteps apart).

        Raises:
            ShapeError: If `t` is not one-dimensional.
        """
        if t.dim() != 1:
            raise ShapeError(
                f"TimestepEmbedding: expected timesteps (B,), got {tuple(t.shape)}. "
                "Pass one timestep a row, e.g. t.expand(B)."
            )
        t = t if t.dtype == torch.float64 else t.float()
        frequencies = self._frequencies.get((t.dtype, t.device))
        if frequencies is None:
            with torch.inference_mode(False):  # they outlive the mode
                half = self.dim // 2
                index = torch.arange(half, dtype=t.dtype, device=t.device)
                frequencies = torch.exp(-math.log(_LONGEST_PERIOD) / max(half, 1) * index)
            if type(frequencies) is Tensor:  # no stand-in of somebody who traces
                self._frequencies[t.dtype, t.device] = frequencies
        angles = t.unsqueeze(1) * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
