"""Tiny wrapped U-ViTs, and a threshold that some rows pass."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

from examples.reproduction.models.uvit import UViT, UViTConfig
from exitkit import wrap
from exitkit.policies import UncertaintyThreshold
from exitkit.sampling.sampler import Sampler
from tests.copies import copies

SHAPE = (1, 8, 8)
STEPS = 6
DDIM = DDIMScheduler(clip_sample=True)


def backbone():
    torch.manual_seed(0)
    return UViT(UViTConfig(8, 4, 1, embed_dim=16, depth=4, num_heads=2)).eval()


def sampler(steps=STEPS, batch_size=64):
    return Sampler(DDIM, SHAPE, steps, batch_size=batch_size)


@copies
def wrapped(preset):
    inputs = (torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0]))
    model = wrap(backbone(), preset, example_inputs=inputs)
    torch.manual_seed(1)
    for parameter in model.exit_parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.heads.mark_fitted()
    return model


@torch.no_grad()
def some_leave(model):
    """A threshold that lets some rows leave and others stay."""
    seen = []
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(3))
    for t in (900.0, 500.0, 100.0):
        out = model(x, torch.full((16,), t), output_exits=True)
        seen += [u.flatten(1).mean(dim=1) for u in out.uncertainty]
    return UncertaintyThreshold(float(torch.cat(seen).quantile(0.4)))
