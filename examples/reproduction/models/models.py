"""The shipped models, ready to run: `load_uvit`, `load_unet`, `load_dit`, `load_pixart`, and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    DDPMScheduler,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DModel,
)
from safetensors.torch import load_file
from torch import nn

import exitkit as ek

from .classifier import DigitClassifier, DigitFeatures
from .uvit import UViT, uvit_mnist, uvit_mnist_small

WEIGHTS = Path(__file__).parent / "weights"

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [24, 32, 64],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}

DIT_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 8,
    "sample_size": 32,
    "patch_size": 4,
    "num_embeds_ada_norm": 10,
}
"""Class-conditional; label 10 is "no class"."""

PIXART_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 8,
    "sample_size": 32,
    "patch_size": 4,
    "cross_attention_dim": 128,
    "caption_channels": 384,
    "use_additional_conditions": False,
}
"""Guided by text: captions as `captions.embed` embeds them."""

_M = TypeVar("_M", bound=nn.Module)


def new_unet() -> UNet2DModel:
    """An untrained UNet noise predictor: `unet(x, t).sample` has the shape of `x`."""
    return UNet2DModel(**UNET_CONFIG)


def new_dit() -> DiTTransformer2DModel:
    """An untrained class-conditional DiT: `dit(x, t, class_labels=y).sample`."""
    model = DiTTransformer2DModel(**DIT_CONFIG)
    for block in model.transformer_blocks:
        # Each block would drop labels on its own; training drops a label for the whole network.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
        nn.init.zeros_(block.norm1.linear.weight)
    return model


def new_pixart() -> PixArtTransformer2DModel:
    """An untrained PixArt: `pixart(x, encoder_hidden_states=text, timestep=t, ...).sample`."""
    return PixArtTransformer2DModel(**PIXART_CONFIG)


def load_uvit() -> UViT:
    """The trained U-ViT of `uvit_mnist()`, in eval mode."""
    return _with_weights(UViT(uvit_mnist()), "uvit_mnist")


def load_small_uvit() -> UViT:
    """The small U-ViT of `uvit_mnist_small()`, trained from scratch, in eval mode."""
    return _with_weights(UViT(uvit_mnist_small()), "small_mnist")


def load_dit() -> DiTTransformer2DModel:
    """The trained class-conditional DiT, in eval mode."""
    return _with_weights(new_dit(), "dit_mnist")


def load_pixart() -> PixArtTransformer2DModel:
    """The trained text-guided PixArt, in eval mode."""
    return _with_weights(new_pixart(), "pixart_mnist")


def load_unet() -> UNet2DModel:
    """The trained UNet, in eval mode."""
    return _with_weights(new_unet(), "unet_mnist")


def exits_folder(preset: str, network: str = "uvit") -> Path:
    """Where the trained exits of a preset on a network are kept."""
    return WEIGHTS / f"{network}_{preset}"


def load_exits(preset: str) -> ek.ExitModel:
    """The trained exits on a U-ViT of their own; for `paper` with its fine-tuned weights."""
    inputs = (torch.randn(2, 1, 32, 32), torch.tensor([500.0, 100.0]))
    return ek.ExitModel.from_pretrained(load_uvit(), exits_folder(preset), example_inputs=inputs)


def load_classifier() -> DigitClassifier:
    """The trained digit classifier, in eval mode."""
    return _with_weights(DigitClassifier(), "digit_classifier")


def load_features() -> DigitFeatures:
    """The trained classifier's features as a module, in eval mode, for a Frechet distance."""
    return DigitFeatures(load_classifier()).eval()


def scheduler() -> DDPMScheduler:
    """The noise schedule of the training: 1000 steps, linear betas, noise prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon"
    )


def _with_weights(model: _M, name: str) -> _M:
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}; write them with `python -m examples.reproduction.models.train`"
        )
    model.load_state_dict(load_file(path))
    return model.eval()
