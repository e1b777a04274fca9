"""Random numbers that are functions of a seed and a place, so that a run can be taken up anywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *place: int | str) -> int:
    """Makes an independent seed for a place.

    Arguments:
        seed: The run's seed.
        place: What the numbers are for, such as `("step", 12)`.

    Returns:
        A seed in [0, 2**63).

    Example:
        >>> derive(0, "step", 1) == derive(0, "step", 1) != derive(0, "step", 2)
        True
    """
    text = repr((int(seed), *place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for a place: the same numbers on every device."""
    return torch.Generator().manual_seed(derive(seed, *place))


def seed_everything(seed: int) -> None:
    """Seeds PyTorch (all devices), NumPy and Python: what loaders, augmentations and dropout use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
