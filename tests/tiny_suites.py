"""Tiny wrapped models and suites with random weights, for tests of calibration and of suites."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

import exitkit as ek
from examples.reproduction.models.uvit import UViT, UViTConfig
from exitkit.benchmark import Suite
from exitkit.model import ExitModel
from exitkit.policies import NeverExit
from exitkit.sampling.sampler import Sampler
from tests.backbones import NoBlocks, TokenNet, perturb

SHAPE = (3, 4, 4)
STEPS = 4
SCHEDULER = DDIMScheduler(clip_sample=False)


def backbone(depth: int = 6, dim: int = 32) -> nn.Module:
    """The same random residual network at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturb(TokenNet(depth=depth, dim=dim).eval())


def example(shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Two rows of noise at two timesteps."""
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return noise, torch.tensor([5, 700])


def opinionated(model: ExitModel, seed: int = 0, spread: float = 0.5) -> ExitModel:
    """Gives exits outputs that are a little off, and uncertainties that vary by row and step."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.copy_(spread * torch.randn(p.shape, generator=source))
            if name.endswith("bias"):
                p.zero_()
        for p in model.heads.output.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=source))
    model.heads.mark_fitted()
    return model


def wrapped(preset: Any, **overrides: Any) -> ExitModel:
    """The random network with opinionated exits, and a policy that never leaves."""
    model = ek.wrap(backbone(), preset, example_inputs=example(), **overrides)
    assert isinstance(model, ExitModel)
    model.policy = NeverExit()
    return opinionated(model)


def _loader(batch_size: int, seed: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, *SHAPE, generator=source) for _ in range(2)]


def suite(**changes: Any) -> Suite:
    """No condition, and one rival that is a network of its own."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "backbone": backbone,
        "example_inputs": example(),
        "sampler": Sampler(SCHEDULER, SHAPE, STEPS),
        "task": ek.tasks.Noise(DDPMScheduler()),
        "loader": _loader,
        "networks": {"half the depth": lambda: backbone(depth=3)},
    }
    return Suite(**{**settings, **changes})


def labelled() -> nn.Module:
    """A random U-ViT with ten classes and a label for none of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = UViTConfig(4, 2, 3, embed_dim=16, depth=4, num_heads=2, num_classes=11)
        return perturb(UViT(config).eval())


def conditional() -> Suite:
    """Classes, with guidance."""

    def batches(batch_size: int, seed: int) -> list[dict[str, Tensor]]:
        return [
            {"image": images, "y": torch.arange(len(images)) % 11}
            for images in _loader(batch_size, seed)
        ]

    return Suite(
        name="tiny conditional",
        backbone=labelled,
        example_inputs={"x": example()[0], "timesteps": example()[1], "y": torch.tensor([3, 7])},
        sampler=Sampler(
            SCHEDULER,
            SHAPE,
            STEPS,
            conditions=lambda seeds: {"y": seeds % 10},
            guidance_scale=1.5,
            negative_conditions=lambda seeds: {"y": torch.full_like(seeds, 10)},
        ),
        task=ek.tasks.Noise(DDPMScheduler()),
        loader=batches,
    )


ready = suite()


def without_blocks() -> Suite:
    """A backbone that nobody can leave early."""
    return suite(backbone=NoBlocks, example_inputs=(torch.randn(2, 4),))


def no_suite() -> Callable[[], None]:
    """Something else than a suite."""
    return lambda: None


def _images(seed: int) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    draw = [torch.randn(4, 1, 32, 32, generator=source) for _ in range(2)]
    return [(images, torch.arange(4) + 4 * (seed % 2)) for images in draw]


def classes() -> Suite:
    """A random timm ViT on noise with classes."""
    from examples.reproduction.models.timm_digits import vit  # timm takes seconds to import

    torch.manual_seed(0)
    network = vit().eval()
    return Suite(
        name="tiny classes",
        backbone=lambda: copy.deepcopy(network),
        example_inputs=(torch.zeros(2, 1, 32, 32),),
        loader=lambda batch, seed: _images(seed),
        task=ek.tasks.Classification(),
        tuning=lambda: _images(1),
        held_out=lambda: _images(2),
    )
