"""The noise predictors that `train.py` trains: how each is built, conditioned and optimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .captions import draw_captions, embedded
from .models import DIT_CONFIG, PIXART_CONFIG, UNET_CONFIG, new_dit, new_pixart, new_unet
from .uvit import UViT, uvit_mnist, uvit_mnist_small
from .uvit_init import quick_start

UNCONDITIONAL = 0.1
"""Share of examples that see no condition, for classifier-free guidance."""

Condition = Callable[[Tensor, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One reference model.

    Attributes:
        build: Makes it, untrained, and says its configuration.
        condition: Arguments by name from images (B, 1, 32, 32) and labels (B,).
        in_blocks: Part of the names of parameters inside its blocks, whose matrices Muon trains;
            empty: AdamW trains everything.
        half: Whether the weights are kept in float16.
    """

    build: Callable[[], tuple[nn.Module, dict[str, Any]]]
    condition: Condition = lambda images, labels: {}
    in_blocks: str = ""
    half: bool = False

    def matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """The matrices inside the blocks; modulations start at zero and are left to AdamW."""
        if not self.in_blocks:
            return []
        named = model.named_parameters()
        return [
            p for name, p in named if p.ndim == 2 and self.in_blocks in name and ".norm" not in name
        ]


def _uvit() -> tuple[nn.Module, dict[str, Any]]:
    return quick_start(UViT(uvit_mnist())), asdict(uvit_mnist())


def _small_uvit() -> tuple[nn.Module, dict[str, Any]]:
    return quick_start(UViT(uvit_mnist_small())), asdict(uvit_mnist_small())


def _labels(images: Tensor, labels: Tensor) -> dict[str, Any]:
    free = torch.rand(len(labels)) < UNCONDITIONAL
    return {"class_labels": torch.where(free, DIT_CONFIG["num_embeds_ada_norm"], labels)}


def _captions(images: Tensor, labels: Tensor) -> dict[str, Any]:
    features, mask = embedded(draw_captions(images, labels, UNCONDITIONAL))
    return {
        "encoder_hidden_states": features,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


KINDS = {
    "uvit": Kind(_uvit, in_blocks="block"),
    "small": Kind(_small_uvit, in_blocks="block"),
    "unet": Kind(lambda: (new_unet(), dict(UNET_CONFIG))),
    "dit": Kind(
        lambda: (new_dit(), dict(DIT_CONFIG)), _labels, in_blocks="transformer_blocks", half=True
    ),
    "pixart": Kind(
        lambda: (new_pixart(), dict(PIXART_CONFIG)),
        _captions,
        in_blocks="transformer_blocks",
        half=True,
    ),
}
