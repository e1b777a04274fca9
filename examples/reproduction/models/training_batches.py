"""Training batches of the reference networks, endless, with the digits on the device beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .digits import load_digits
from .kinds import KINDS


class TrainingBatches:
    """Digits and conditions as in the training of the networks themselves (`train.py`).

    Rows are drawn with replacement and conditions anew in every batch, from PyTorch's own source,
    which `fit` seeds by the number of the step: a run that is taken up goes on exactly.

    Args:
        network: Name in `KINDS`.
        rows: Rows of a batch.
        device: Where batches are made.
    """

    def __init__(self, network: str, rows: int, device: torch.device | str = "cpu") -> None:
        self.network, self.rows = network, rows
        digits = load_digits()
        self.images, self.labels = digits.train_images, digits.train_labels
        self.ready = self.images.to(device)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            rows = torch.randint(len(self.images), (self.rows,))
            given = KINDS[self.network].condition(self.images[rows], self.labels[rows])
            yield {"image": self.ready[rows.to(self.ready.device)], **given}
