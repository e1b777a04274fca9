"""Where the positions of a hidden state lie in the output: token grids and feature grids.

A transformer's tokens are patches of the output, row by row, after a few leading tokens (class,
label, time). A CNN's features are a coarser or finer grid of the output's spatial size. From the
two shapes alone `place` says which applies, and `Placement.spread` lays values out accordingly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.surgery.spec import HiddenSpec

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Grid:
    """How tokens tile an image.

    Attributes:
        extra: Leading tokens that are no patches.
        patch: Side of a patch in output elements.
    """

    extra: int
    patch: int


def token_grid(tokens: int, height: int, width: int) -> Grid | None:
    """Finds the patch size that explains a number of tokens with the fewest leading extra tokens.

    Arguments:
        tokens: Number of tokens T.
        height: Height of the output.
        width: Width of the output.

    Returns:
        The grid, or None if no square patch gives T tokens or fewer.

    Example:
        >>> token_grid(65, 32, 32)
        Grid(extra=1, patch=4)
    """
    side = math.gcd(height, width)
    patches = [p for p in range(1, side + 1) if side % p == 0]
    counts = {p: (height // p) * (width // p) for p in patches}
    fitting = [p for p in patches if counts[p] <= tokens]
    if not fitting:
        return None
    return Grid(tokens - counts[fitting[0]], fitting[0])


def unpatchify(values: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Lays patches out as an image: 'B (h w) (p1 p2 C) -> B C (h p1) (w p2)'.

    Arguments:
        values: One vector a patch, with shape (B, h w, p p C).
        height: Height h p of the image.
        width: Width w p of the image.
        patch: Side p of a patch.

    Returns:
        The image, with shape (B, C, height, width).
    """
    rows, columns = height // patch, width // patch
    grid = values.reshape(values.shape[0], rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(values.shape[0], -1, height, width)


def resize(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """Brings channels-first features to another spatial size.

    Averages where the grid gets coarser on every axis, else interpolates linearly.

    Arguments:
        features: Features (B, C, *spatial) with one to three spatial axes.
        size: The wanted spatial size.

    Returns:
        Features (B, C, *size); the same tensor if the size is right already.
    """
    spatial = tuple(features.shape[2:])
    if spatial == size:
        return features
    if all(s >= w for s, w in zip(spatial, size, strict=True)):
        pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
        return pool[len(size)](features, size)  # type: ignore[arg-type]
    return F.interpolate(features, size=size, mode=_INTERPOLATION[len(size)], align_corners=False)


@dataclass(frozen=True)
class Placement:
    """How a value per position becomes a value per output element.

    Attributes:
        kind: `patches` tokens that tile an image or a sequence, `packed` tokens whose vectors are
            the output's, `features` a grid with as many spatial axes as the output.
        outputs: Channels that a position needs.
        output: Shape of the output without rows.
        extra: Leading tokens to drop.
        patch: Side of the piece of the output that belongs to a position.
    """

    kind: Literal["patches", "packed", "features"]
    outputs: int
    output: tuple[int, ...]
    extra: int = 0
    patch: int = 1

    def spread(
        self, values: Tensor, channel_axis: int, size: tuple[int, ...] | None = None
    ) -> Tensor:
        """Lays out one vector a position.

        Arguments:
            values: Values in the layout of the hidden state with `outputs` channels, (B, ...).
            channel_axis: Index of the channels in the shape of one row.
            size: Spatial size of the output at hand, where it is not the one of `output`.

        Returns:
            The map, with shape (B, C, *size), or (B, L, C) for packed tokens.

        Raises:
            ShapeError: If the tokens do not tile that size.
        """
        size = size or self.output[1:]
        if self.kind == "features":
            values = values.movedim(channel_axis + 1, 1)
            if self.patch > 1:
                values = F.pixel_shuffle(values, self.patch)
            return resize(values, size)
        if self.kind == "packed":
            return values[:, self.extra :] if self.extra else values
        pieces = math.prod(n // self.patch for n in size)
        extra = values.shape[1] - pieces
        # Text tokens in front may be more or fewer than the example's; patches may not.
        if extra < 0 or (extra != self.extra and not self.extra):
            raise ShapeError(
                f"A head for patches of {self.patch} got {values.shape[1]} tokens "
                f"({self.extra} of them no patches), which do not tile an output of size {size}. Wrap "
                "again with example_inputs of this size."
            )
        values = values[:, extra:] if extra else values
        if len(self.output) == 2:  # B l (p C) -> B C (l p)
            cut = values.reshape(*values.shape[:2], self.patch, self.output[0])
            return cut.permute(0, 3, 1, 2).flatten(2)
        return unpatchify(values, size[0], size[1], self.patch)


def frames_first(hidden: HiddenSpec, output: tuple[int, ...]) -> bool:
    """Whether a video output has its frames in front of its channels, (F, C, H, W).

    Arguments:
        hidden: Layout of a hidden state, whose own channels are known.
        output: Shape of the output without rows.

    Returns:
        True if the frames of the hidden state are found in front.
    """
    if len(output) != 4 or len(hidden.shape) != 4:
        return False
    frames = hidden.shape[1 if hidden.channel_axis == 0 else 0]
    return output[0] == frames != output[1]


def swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same shape with its first two axes exchanged."""
    return (shape[1], shape[0], *shape[2:])


def place(hidden: HiddenSpec, output: tuple[int, ...]) -> Placement | None:
    """Finds how the positions of a hidden state lie in the output.

    Arguments:
        hidden: Layout of the hidden state.
        output: Shape of the output without rows: (C, H, W), (C, L), (L, C) for packed tokens,
            (C, F, H, W), or (classes,).

    Returns:
        The placement, or None where there is none to see: vectors, classes, folded layouts.
    """
    if len(output) < 2 or len(hidden.shape) < 2:
        return None
    if hidden.kind == "tokens":
        return _place_tokens(hidden.shape[0], output)
    if len(output) != len(hidden.shape) or len(output) > 4:
        return None
    spatial = tuple(n for axis, n in enumerate(hidden.shape) if axis != hidden.channel_axis)
    finer = {(want // have, want % have) for want, have in zip(output[1:], spatial, strict=True)}
    ratio, rest = finer.pop()
    if len(output) == 3 and not finer and rest == 0 and ratio > 1:
        return Placement("features", ratio**2 * output[0], output, patch=ratio)
    return Placement("features", output[0], output)


def _place_tokens(tokens: int, output: tuple[int, ...]) -> Placement | None:
    if len(output) == 3:
        grid = token_grid(tokens, output[1], output[2])
        if grid is None:
            return None
        return Placement("patches", grid.patch**2 * output[0], output, grid.extra, grid.patch)
    if len(output) != 2:
        return None
    # (L, C) packed latents or (C, L) a sequence: the reading that leaves fewer tokens unexplained.
    pieces = max(n for n in range(1, min(tokens, output[1]) + 1) if output[1] % n == 0)
    if tokens - pieces < abs(tokens - output[0]):
        patch = output[1] // pieces
        return Placement("patches", patch * output[0], output, tokens - pieces, patch)
    if output[0] > tokens:
        return None
    return Placement("packed", output[1], output, tokens - output[0])


def output_size(
    output: tuple[int, ...], built: tuple[int, ...] | None, noisy: Tensor | None
) -> tuple[int, ...] | None:
    """Spatial size of the output that belongs to a noisy input of another resolution.

    Arguments:
        output: Shape of one row of the output in the example.
        built: Shape of one row of the noisy input in the example, or None.
        noisy: The noisy input at hand, with shape (B, ...), or None.

    Returns:
        The size, or None where nothing tells that it differs from the example's.
    """
    if built is None or noisy is None or noisy.dim() != len(built) + 1 or len(output) < 2:
        return None
    if len(output) != len(built) or tuple(noisy.shape[2:]) == built[1:]:
        return None
    return tuple(o * n // b for o, b, n in zip(output[1:], built[1:], noisy.shape[2:], strict=True))
