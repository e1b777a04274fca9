"""Backbones of denoising-diffusion-pytorch and azula."""

from __future__ import annotations

from functools import partial

from tests.zoo.by_name import classes, normal, specimen
from tests.zoo.drawing import steps

# ------------------------------------------------------------------------ denoising-diffusion-pytorch

_ddp = partial(specimen, "denoising-diffusion-pytorch")
_DDP = "denoising_diffusion_pytorch"
_SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_dim_head": 8, "attn_heads": 2}
_KARRAS = {
    "dim": 16,
    "dim_max": 32,
    "num_downsamples": 2,
    "num_blocks_per_stage": 1,
    "attn_res": (8, 4),
    "fourier_dim": 8,
    "attn_dim_head": 8,
}

DENOISING = (
    _ddp("Unet", _DDP, _SMALL, {"x": normal(3, 16, 16), "time": steps}),
    _ddp(
        "Unet",
        _DDP,
        {**_SMALL, "self_condition": True},
        {"x": normal(3, 16, 16), "time": steps, "x_self_cond": normal(3, 16, 16)},
        variant="(self-conditioned)",
    ),
    _ddp("Unet1D", _DDP, _SMALL, {"x": normal(3, 16), "time": steps}),
    _ddp(
        "Unet",
        f"{_DDP}.classifier_free_guidance",
        {**_SMALL, "num_classes": 10},
        {"x": normal(3, 16, 16), "time": steps, "classes": classes(10), "cond_drop_prob": 0.0},
        variant="(classifier-free)",
    ),
    _ddp(
        "UViT",
        f"{_DDP}.simple_diffusion",
        {"dim": 8, "dim_mults": (1, 2), "vit_depth": 4, "attn_dim_head": 8, "attn_heads": 2},
        {"x": normal(3, 16, 16), "time": normal()},
        note="the time is a log signal-to-noise ratio",
    ),
    _ddp(
        "KarrasUnet",
        _DDP,
        {**_KARRAS, "image_size": 16, "num_classes": 10},
        {"x": normal(4, 16, 16), "time": normal(), "class_labels": classes(10)},
    ),
    _ddp("KarrasUnet1D", _DDP, {**_KARRAS, "seq_len": 16}, {"x": normal(4, 16), "time": normal()}),
    _ddp(
        "KarrasUnet3D",
        _DDP,
        {**_KARRAS, "image_size": 8, "frames": 4},
        {"x": normal(4, 4, 8, 8), "time": normal()},
    ),
    _ddp(
        "MPImageTransformer",
        f"{_DDP}.karras_unet",
        {"dim": 16, "depth": 4, "dim_head": 8, "heads": 2},
        {"x": normal(16, 8, 8)},
    ),
)

# ------------------------------------------------------------------------------------------------ azula

_azula = partial(specimen, "azula")
_TOKENS = {"mod_features": 16, "hid_channels": 32, "hid_blocks": 4, "attention_heads": 2}
_LEVELS = {"mod_features": 16, "hid_channels": (8, 16, 16), "hid_blocks": (1, 2, 1), "groups": 4}

AZULA = (
    _azula(
        "UNet",
        "azula.nn.unet",
        {"in_channels": 3, "out_channels": 3, **_LEVELS},
        {"x": normal(3, 16, 16), "mod": normal(16)},
    ),
    _azula(
        "UNet",
        "azula.nn.unet",
        {"in_channels": 2, "out_channels": 2, "cond_channels": 1, "spatial": 1, **_LEVELS},
        {"x": normal(2, 16), "mod": normal(16), "cond": normal(1, 16)},
        variant="(1d, conditional)",
    ),
    _azula(
        "ViT",
        "azula.nn.vit",
        {"in_channels": 3, "out_channels": 3, "patch_size": 4, "rope": True, **_TOKENS},
        {"x": normal(3, 16, 16), "mod": normal(16)},
    ),
    _azula(
        "DiT",
        "azula.nn.dit",
        {"in_channels": 6, "out_channels": 6, **_TOKENS},
        {"x": normal(12, 6), "mod": normal(16)},
    ),
    _azula(
        "DiT",
        "azula.nn.dit",
        {"in_channels": 6, "out_channels": 6, "cond_channels": 2, "pos_channels": 2, **_TOKENS},
        {
            "x": normal(12, 6),
            "mod": normal(16),
            "pos": normal(12, 2),
            "cond": normal(12, 2),
        },
        variant="(positions)",
    ),
)

SPECIMENS = (*DENOISING, *AZULA)
