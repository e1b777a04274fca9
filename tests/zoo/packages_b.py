"""Backbones of monai, x-transformers and k-diffusion."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from tests.zoo.by_name import classes, draw, make, normal, sigmas, specimen
from tests.zoo.drawing import steps
from tests.zoo.specimen import Specimen

# ------------------------------------------------------------------------------------------------ monai

_monai = partial(specimen, "monai")
_NETS = "monai.networks.nets"
_UNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "num_res_blocks": 1,
    "channels": (8, 16, 16),
    "attention_levels": (False, True, True),
    "norm_num_groups": 4,
    "num_head_channels": 8,
}
_NOISY = {"x": normal(3, 16, 16), "timesteps": steps}
_VIT = {
    "in_channels": 3,
    "img_size": (16, 16),
    "patch_size": (4, 4),
    "hidden_size": 24,
    "mlp_dim": 48,
    "num_layers": 4,
    "num_heads": 2,
    "spatial_dims": 2,
}

MONAI = (
    _monai("DiffusionModelUNet", _NETS, {**_UNET, "out_channels": 3}, _NOISY),
    _monai(
        "DiffusionModelUNet",
        _NETS,
        {**_UNET, "out_channels": 3, "with_conditioning": True, "cross_attention_dim": 12},
        {**_NOISY, "context": normal(5, 12)},
        variant="(context)",
    ),
    _monai(
        "DiffusionModelUNet",
        _NETS,
        {
            **_UNET,
            "out_channels": 3,
            "spatial_dims": 3,
            "resblock_updown": True,
            "num_class_embeds": 10,
        },
        {"x": normal(3, 8, 8, 8), "timesteps": steps, "class_labels": classes(10)},
        variant="(3d)",
    ),
    _monai(
        "DiffusionModelEncoder",
        f"{_NETS}.diffusion_model_unet",
        {**_UNET, "out_channels": 10, "input_shape": (16, 16)},
        _NOISY,
    ),
    _monai(
        "SPADEDiffusionModelUNet",
        _NETS,
        {**_UNET, "out_channels": 3, "label_nc": 2, "spade_intermediate_channels": 8},
        {**_NOISY, "seg": normal(2, 16, 16)},
    ),
    _monai(
        "ControlNet",
        _NETS,
        {**_UNET, "conditioning_embedding_num_channels": (8,)},
        {**_NOISY, "controlnet_cond": normal(1, 16, 16)},
    ),
    _monai(
        "ViT",
        _NETS,
        {**_VIT, "classification": True, "num_classes": 10},
        {"x": normal(3, 16, 16)},
        note="returns the hidden states of all blocks too",
    ),
    _monai(
        "ViTAutoEnc",
        _NETS,
        {**_VIT, "out_channels": 3, "deconv_chns": 8},
        {"x": normal(3, 16, 16)},
        note="returns the hidden states of all blocks too",
    ),
)

# --------------------------------------------------------------------------------------- x-transformers

_xt = partial(specimen, "x-transformers")


def _layers(kind: str = "Encoder", **options: Any) -> Callable[[], nn.Module]:
    sizes = {"dim": 32, "depth": 4, "heads": 2, "attn_dim_head": 16, **options}
    return partial(make, "x_transformers", kind, sizes)


_CONTINUOUS = {"dim_in": 6, "dim_out": 6, "max_seq_len": 16}

X_TRANSFORMERS = (
    _xt(
        "ContinuousTransformerWrapper",
        "x_transformers",
        {**_CONTINUOUS, "attn_layers": _layers()},
        {"x": normal(12, 6)},
    ),
    _xt(
        "ContinuousTransformerWrapper",
        "x_transformers",
        {**_CONTINUOUS, "attn_layers": _layers("Decoder", rotary_pos_emb=True)},
        {"x": normal(12, 6)},
        variant="(causal, rotary)",
    ),
    _xt(
        "ViTransformerWrapper",
        "x_transformers",
        {"image_size": 16, "patch_size": 4, "num_classes": 10, "attn_layers": _layers()},
        {"img": normal(3, 16, 16)},
    ),
)

# ------------------------------------------------------------------------------------------ k-diffusion


def _k_diffusion(name: str, options: dict[str, Any]) -> nn.Module:
    """Builds without the package's imports for FID and CLIP, and without torch.compile."""
    os.environ.setdefault("K_DIFFUSION_USE_COMPILE", "0")
    if "k_diffusion" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        bare = ModuleType("k_diffusion")
        bare.__path__ = list((found and found.submodule_search_locations) or ())
        sys.modules["k_diffusion"] = bare
    return make("k_diffusion.models", name, options)


_DENOISED = {"input": normal(3, 16, 16), "sigma": sigmas}
_V1 = {
    "c_in": 3,
    "feats_in": 16,
    "depths": (1, 2, 1),
    "channels": (8, 16, 16),
    "self_attn_depths": (False, True, True),
}
_TRANSFORMER = {
    "n_layers": 4,
    "d_model": 64,
    "d_ff": 64,
    "in_features": 3,
    "out_features": 3,
    "patch_size": (4, 4),
    "num_classes": 10,
}

K_DIFFUSION = (
    Specimen(
        "k-diffusion.ImageDenoiserModelV1",
        partial(_k_diffusion, "ImageDenoiserModelV1", _V1),
        partial(draw, _DENOISED),
    ),
    Specimen(
        "k-diffusion.ImageTransformerDenoiserModelV1",
        partial(_k_diffusion, "ImageTransformerDenoiserModelV1", _TRANSFORMER),
        partial(draw, {"x": normal(3, 16, 16), "sigma": sigmas, "class_cond": classes(10)}),
    ),
)

SPECIMENS = (*MONAI, *X_TRANSFORMERS, *K_DIFFUSION)
