"""The shipped models, ready to run: `load_uvit`, `load_unet`, `load_classifier`, `scheduler`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import nn

from .classifier import DigitClassifier, DigitFeatures
from .uvit import UViT, uvit_mnist

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

_M = TypeVar("_M", bound=nn.Module)


def new_unet() -> UNet2DModel:
    """An untrained UNet noise predictor: `unet(x, t).sample` has the shape of `x`."""
    return UNet2DModel(**UNET_CONFIG)


def load_uvit() -> UViT:
    """The trained U-ViT of `uvit_mnist()`, in eval mode."""
    return _with_weights(UViT(uvit_mnist()), "uvit_mnist")


def load_unet() -> UNet2DModel:
    """The trained UNet, in eval mode."""
    return _with_weights(new_unet(), "unet_mnist")


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
            f"no weights at {path}; write them with `python -m examples.reference.train`"
        )
    model.load_state_dict(load_file(path))
    return model.eval()
