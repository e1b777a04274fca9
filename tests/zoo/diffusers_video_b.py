"""Video transformers of diffusers, EasyAnimate to HunyuanVideo, shrunk."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import lengths_mask, steps
from tests.zoo.specimen import Specimen


def _easy_animate() -> nn.Module:
    """Two blocks with weights for each stream and two that share them."""
    return diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=4,
        mmdit_layers=2,
        time_embed_dim=16,
        add_norm_text_encoder=True,
        text_embed_dim=12,
        time_position_encoding_type="3d_rope",
    )


def _easy_animate_inputs(rows: int) -> Inputs:
    """Latents and text."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
    )


def _helios() -> nn.Module:
    """Three blocks that see a history at three resolutions."""
    return diffusers.HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_dim=(4, 4, 4),
    )


def _helios_inputs(rows: int) -> Inputs:
    """Latents and their history, with frame indices of one row that all rows share."""
    long, mid, short, now = (t[None] for t in torch.arange(14).split([8, 2, 1, 3]))
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        indices_hidden_states=now,
        indices_latents_history_short=short,
        indices_latents_history_mid=mid,
        indices_latents_history_long=long,
        latents_history_short=torch.randn(rows, 4, 1, 8, 8),
        latents_history_mid=torch.randn(rows, 4, 2, 8, 8),
        latents_history_long=torch.randn(rows, 4, 8, 8, 8),
    )


_HUNYUAN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "guidance_embeds": True,
    "text_embed_dim": 12,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 2, 2),
}


def _hunyuan_video() -> nn.Module:
    """Two dual and two single blocks behind a token refiner."""
    return diffusers.HunyuanVideoTransformer3DModel(**_HUNYUAN)


def _hunyuan_video_inputs(rows: int, **more: Any) -> Inputs:
    """Latents, text with a mask of random lengths, pooled text and guidance."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_attention_mask=lengths_mask(rows, 5, 3),
        pooled_projections=torch.randn(rows, 10),
        guidance=1000.0 * torch.randint(3, 7, (rows,)),
        **more,
    )


def _framepack() -> nn.Module:
    """HunyuanVideo that sees a history at three resolutions."""
    return diffusers.HunyuanVideoFramepackTransformer3DModel(
        **_HUNYUAN, has_image_proj=True, image_proj_dim=10, has_clean_x_embedder=True
    )


def _framepack_inputs(rows: int) -> Inputs:
    """As HunyuanVideo, with an image, a history, and frame indices that all rows share."""
    prefix, four, two, one, now = torch.arange(15).split([1, 8, 2, 1, 3])
    return _hunyuan_video_inputs(
        rows,
        image_embeds=torch.randn(rows, 6, 10),
        indices_latents=now,
        latents_clean=torch.randn(rows, 4, 2, 8, 8),
        indices_latents_clean=torch.cat([prefix, one]),
        latents_history_2x=torch.randn(rows, 4, 2, 8, 8),
        indices_latents_history_2x=two,
        latents_history_4x=torch.randn(rows, 4, 8, 8, 8),
        indices_latents_history_4x=four,
    )


def _hunyuan_video15() -> nn.Module:
    """Three blocks that carry video tokens and those of two texts and an image."""
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=2,
        text_embed_dim=12,
        text_embed_2_dim=10,
        image_embed_dim=8,
        rope_axes_dim=(4, 2, 2),
    )


def _hunyuan_video15_inputs(rows: int) -> Inputs:
    """Latents with their condition, two texts with masks, and an image; the timestep is a float."""
    return Inputs(
        hidden_states=torch.randn(rows, 9, 3, 8, 8),
        timestep=steps(rows).float(),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_attention_mask=lengths_mask(rows, 5, 3),
        encoder_hidden_states_2=torch.randn(rows, 6, 10),
        encoder_attention_mask_2=lengths_mask(rows, 6, 3),
        image_embeds=torch.randn(rows, 7, 8),
    )


SPECIMENS = (
    Specimen(
        "diffusers.EasyAnimateTransformer3DModel",
        _easy_animate,
        _easy_animate_inputs,
    ),
    Specimen(
        "diffusers.HeliosTransformer3DModel",
        _helios,
        _helios_inputs,
        note="history of three resolutions; frame indices of one row",
    ),
    Specimen("diffusers.HunyuanVideoTransformer3DModel", _hunyuan_video, _hunyuan_video_inputs),
    Specimen(
        "diffusers.HunyuanVideoFramepackTransformer3DModel",
        _framepack,
        _framepack_inputs,
        note="cuts padding off the text when there is one row only",
    ),
    Specimen(
        "diffusers.HunyuanVideo15Transformer3DModel",
        _hunyuan_video15,
        _hunyuan_video15_inputs,
    ),
)
