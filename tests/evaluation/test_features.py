"""Images as vectors: in double precision, batch by batch, with the network left as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exitkit.evaluation.features import vectors


class Recording(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training))
        return x * 2


def test_vectors_are_those_of_single_images() -> None:
    network = Recording().train()
    images = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    found = vectors("A measure", images, network, batch_size=3)
    assert found.dtype == torch.float64 and found.shape == (7, 6)
    assert torch.equal(found.float(), torch.stack([2 * image.flatten() for image in images]))
    # One image tells the width, then batches; in evaluation mode, and back.
    assert network.seen == [(1, False), (3, False), (3, False), (1, False)]
    assert network.training
