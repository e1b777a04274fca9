"""A tiny classifier with exits, and images for it."""

from __future__ import annotations

import timm
import torch
from torch import Tensor

from exitkit import wrap
from exitkit.model import ExitModel
from exitkit.policies import NeverExit
from tests.backbones import perturb


def images(count: int, seed: int, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise, with labels that mean nothing."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 1, 16, 16, generator=g).split(size)
    return [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in drawn]


def classifier() -> ExitModel:
    """A ViT whose exits are its own tail, so that late ones mostly agree with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=8,
            in_chans=1,
            num_classes=4,
            embed_dim=24,
            depth=4,
            num_heads=3,
        )
        model = wrap(perturb(net.eval()), "calm", example_inputs=(torch.zeros(2, 1, 16, 16),))
    assert isinstance(model, ExitModel)
    model.policy = NeverExit()
    return model
