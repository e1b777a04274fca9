"""The layout in which heads see a hidden state: rows first, and where the channels are."""

from __future__ import annotations

from collections import Counter

from torch import nn

from exitkit.surgery.spec import HiddenSpec, Leaf


def hidden_spec(leaf: Leaf, module: nn.Module) -> HiddenSpec:
    """The hidden state as heads see it: rows first, folded tokens merged, folded images as frames.

    Arguments:
        leaf: The hidden state, batch of two.
        module: The block, whose parameter shapes tell where the channels are.

    Returns:
        Shape and channel axis without the batch.
    """
    shape = leaf.shape[1:] if leaf.axis is None else leaf.row
    if not shape:
        return HiddenSpec((1,), 0)
    if len(shape) == 3 and shape[0] != shape[1] == shape[2]:
        channel = 0
    elif len(shape) == 3 and shape[0] == shape[1] != shape[2]:
        channel = 2
    elif len(shape) == 3:
        # Kernel sizes stand behind the first two axes of a weight, and a 1 says nothing.
        votes = Counter(size for p in module.parameters() for size in p.shape[:2] if size > 1)
        channel = 0 if votes[shape[0]] >= votes[shape[-1]] else 2
    else:
        channel = len(shape) - 1
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
