"""The layout in which heads see a hidden state: rows first, and where the channels are."""

from __future__ import annotations

from collections import Counter

from torch import nn

from exitkit.surgery.spec import HiddenSpec, Leaf


def hidden_spec(leaf: Leaf, module: nn.Module, larger: tuple[int, ...] | None = None) -> HiddenSpec:
    """The hidden state as heads see it: rows first, folded tokens merged, folded images as frames.

    Arguments:
        leaf: The hidden state, batch of two.
        module: The block, whose parameter shapes tell where the channels are.
        larger: Shape of one row with a larger input, if that was tried.

    Returns:
        Shape and channel axis without the batch.
    """
    shape = leaf.shape[1:] if leaf.axis is None else leaf.row
    if not shape:
        return HiddenSpec((1,), 0)
    # Rows that are folded into the batch axis are read as tokens or images (execution/rows.py).
    tokens = leaf.fold > 1 and len(shape) == 2
    channel = len(shape) - 1 if tokens else channel_axis(shape, module, larger)
    if leaf.whole:
        return HiddenSpec(shape, channel)
    if leaf.fold > 1 and len(shape) == 3:
        frames = (shape[0], leaf.fold, *shape[1:]) if channel == 0 else (leaf.fold, *shape)
        return HiddenSpec(frames, 0 if channel == 0 else 3)
    if leaf.fold > 1:
        # Frames and the like: one row's entries become one longer sequence of channel vectors.
        rest = [s for a, s in enumerate(shape) if a != channel]
        length = leaf.fold
        for size in rest:
            length *= size
        return HiddenSpec((length, shape[channel]), 1)
    return HiddenSpec(shape, channel)


def channel_axis(
    shape: tuple[int, ...], module: nn.Module, larger: tuple[int, ...] | None = None
) -> int:
    """Which axis of a row holds the channels: the first or the last.

    The sizes of a block's weights vote: kernels of convolutions over as many axes as a row has behind
    its first for the first axis, matrices for the last. Square images tell by their form.

    Arguments:
        shape: Shape of one row.
        module: The block.
        larger: Shape of one row with a larger input, if that was tried: channels do not grow.

    Returns:
        The axis.
    """
    last = len(shape) - 1
    if not last:
        return 0
    ends = [a for a in (0, last) if larger and len(larger) > last and larger[a] == shape[a]]
    if len(ends) == 1:
        return ends[0]
    weights = [p for p in module.parameters() if p.ndim > 1]
    kernels = [p for p in weights if p.ndim == len(shape) + 1 > 2]
    if len(shape) == 3 and shape[0] != shape[1] == shape[2]:
        return 0
    if shape[0] == shape[last]:
        return 0 if kernels else last  # no size tells the two apart
    front = sum(n == shape[0] > 1 for p in kernels for n in p.shape[:2])
    back = sum(n == shape[last] > 1 for p in weights if p.ndim == 2 for n in p.shape)
    if front != back:
        return 0 if front > back else last
    if len(shape) != 3 or shape[0] == shape[1]:
        return last
    # Kernel sizes stand behind the first two axes of a weight, and a 1 says nothing.
    votes = Counter(n for p in weights for n in p.shape[:2] if n > 1)
    return 0 if votes[shape[0]] >= votes[shape[last]] else last
