r"""Output heads of kind `output`: an exit's own output layer, the :math:`g_i` of AdaDiff eq. 8.

Bodies are chosen by where the positions of the hidden state lie in the output: patches of it
(`_Patches`), a grid of its own resolution (`_Features`), one vector for all (`_Pooled`: vectors,
classes), or nowhere that shapes tell (`_Unplaced`).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.errors import ShapeError
from exitkit.heads.carried.state import CarriedState
from exitkit.heads.channels import (
    ChannelLinear,
    ChannelNorm,
    TimestepLinear,
    check_embedding,
    check_hidden,
)
from exitkit.heads.grid import Placement, frames_first, output_size, place, resize, swapped
from exitkit.heads.kinds import OutputKind, Site, register_kind
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan

_WIDEST = 64


class _Body(nn.Module):
    """What the bodies share: a layer, and the timestep's share of what it returns."""

    def __init__(self, axis: int, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.timestep: TimestepLinear | None = None
        if embedding_dim:
            self.timestep = TimestepLinear(axis, embedding_dim, width)

    def with_timestep(self, out: Tensor, embedding: Tensor | None) -> Tensor:
        if self.timestep is None or embedding is None:
            return out
        added: Tensor = self.timestep(embedding, out.dim())
        return out + added


class _Patches(_Body):
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

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None,
        noisy: Tensor | None,
        size: tuple[int, ...] | None,
    ) -> Tensor:
        values = self.with_timestep(self.linear(self.norm(hidden)), embedding)
        return cast(Tensor, self.conv(self.placement.spread(values, self.axis, size)))


class _Features(_Body):
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


class _Pooled(_Body):
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
        pooled = _pooled(hidden, self.axis).to(self.linear.weight.dtype)
        out = self.with_timestep(self.linear(self.norm(pooled)), embedding)
        return out.view(-1, *self.output)


class _Unplaced(_Body):
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
        pooled = _pooled(hidden, self.axis).to(self.linear.weight.dtype)
        out = self.with_timestep(self.linear(self.norm(pooled)), embedding)
        mean, gain = out[:, :-1], out[:, -1:]
        while mean.dim() < len(self.output) + 1:
            mean, gain = mean.unsqueeze(-1), gain.unsqueeze(-1)
        if self.seen and noisy is not None:
            return mean + gain * noisy.to(mean.dtype)
        return mean.expand(-1, *self.output)


class OwnOutputHead(nn.Module):
    r"""An exit's own output layer :math:`g_i`.

    Tokens that tile the output: LayerNorm, linear, un-patch, 3x3 convolution. Features: GroupNorm,
    SiLU, 3x3 convolution, resize to the output's grid, and a second convolution that sees the noisy
    input beside them, since a coarse grid cannot carry noise per pixel. Vectors and classes: mean
    over positions, LayerNorm, linear. Where positions have no place in the output: a mean and a
    multiple of the noisy input. All weights start small (0.02), so predictions do too.

    References:
        | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
          (Tang et al., 2023), eq. 8
        | https://arxiv.org/abs/2309.17074

    Arguments:
        hidden: Layout of the hidden state.
        output: Shape of the backbone's prediction without rows, or (classes,).
        noisy: Shape of the noisy input without rows, or None. Features alone look at it.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        output: tuple[int, ...],
        noisy: tuple[int, ...] | None,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.hidden, self.embedding_dim = hidden, embedding_dim
        self.frames_first = frames_first(hidden, output)
        if self.frames_first:
            output = swapped(output)
            noisy = swapped(noisy) if noisy is not None and len(noisy) == 4 else None
        self.output, self.noisy_shape = output, noisy
        placement = place(hidden, output)
        self.body: nn.Module
        if placement is None and len(output) > 1 and len(hidden.shape) > 1:
            self.body = _Unplaced(hidden, output, noisy, embedding_dim)
        elif placement is None:
            self.body = _Pooled(hidden, output, embedding_dim)
        elif placement.kind == "features":
            self.body = _Features(hidden, output, noisy, embedding_dim)
        else:
            self.body = _Patches(hidden, placement, embedding_dim)
        self.apply(_start_small)

    @classmethod
    def at(cls, site: Site) -> OwnOutputHead:
        """A head for an exit."""
        return cls(site.hidden, site.output, site.noisy, site.embedding_dim)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        """Makes the exit's own prediction.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            noisy: Noisy input, with shape (B, *noisy); used by features that were built with it.
            state: Not used.

        Returns:
            The prediction, with shape (B, *output), in the dtype of `hidden`.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for.
        """
        check_hidden("OwnOutputHead", hidden, self.hidden)
        embedding = check_embedding("OwnOutputHead", embedding, self.embedding_dim, len(hidden))
        if self.frames_first and noisy is not None:
            noisy = noisy.transpose(1, 2)
        size = output_size(self.output, self.noisy_shape, noisy)
        out: Tensor = self.body(hidden, embedding, noisy, size)
        if self.frames_first:
            out = out.transpose(1, 2)
        return out.to(hidden.dtype)


@register_kind
class OwnOutput(OutputKind):
    """Lands nowhere: the head makes the prediction."""

    name = "output"

    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        return None

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        return OwnOutputHead.at(site)


def _conv(spatial: int, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    layers: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    layer: nn.Module = layers[spatial](inputs, outputs, 3, padding=1, bias=bias)
    return layer


def _pooled(hidden: Tensor, axis: int) -> Tensor:
    """Mean over all positions, (B, channels)."""
    rows, channels = hidden.shape[0], hidden.shape[axis + 1]
    return hidden.movedim(axis + 1, 1).reshape(rows, channels, -1).mean(dim=2)


def _start_small(module: nn.Module) -> None:
    # 0.02 as in the U-ViT's own output layers: predictions start near zero, hence finite.
    if isinstance(module, ChannelLinear | nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
