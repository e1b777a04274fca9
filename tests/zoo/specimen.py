"""What a third-party model needs in order to be judged: how to build it, and inputs of any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.backbones import perturb


@dataclass(frozen=True)
class Specimen:
    """A third-party model with a configuration that runs in well under a second.

    Attributes:
        name: Package and class, for example "diffusers.FluxTransformer2DModel".
        build: Makes the model with random weights.
        draw: Draws inputs for a number of rows; random, and no two rows alike. It may be called
            under any seed.
        batched: Whether the model has a batch axis at all.
        note: What is special about it, for the table.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], Inputs]
    batched: bool = True
    note: str = ""

    @property
    def package(self) -> str:
        """The first part of the name."""
        return self.name.split(".")[0]

    def make(self, seed: int = 0) -> nn.Module:
        """Builds the model in eval mode, with every parameter perturbed.

        Zero-initialised gates and output layers would hide a wrongly skipped block.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().eval()
        return perturb(model, seed).requires_grad_(False)

    def inputs(self, rows: int, seed: int = 0) -> Inputs:
        """Inputs for a number of rows."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + seed)
            return self.draw(rows)
