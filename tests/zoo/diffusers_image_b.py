"""Image transformers of diffusers, DreamLite to HiDream, shrunk."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import grid_ids, steps, unit
from tests.zoo.specimen import Specimen


def _dream_lite() -> nn.Module:
    """Three basic blocks between two projections."""
    return diffusers.DreamLiteTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        num_layers=3,
        norm_num_groups=4,
        cross_attention_dim=12,
        qk_norm="rms_norm",
    )


def _dream_lite_inputs(rows: int) -> Inputs:
    """Features and text; no timestep."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 6, 6),
        encoder_hidden_states=torch.randn(rows, 5, 12),
    )


def _ernie() -> nn.Module:
    """Three blocks on sequence-first tokens."""
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=3,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        text_in_dim=12,
        rope_axes_dim=(4, 6, 6),
    )


def _ernie_inputs(rows: int) -> Inputs:
    """Latents and text, with the number of valid text tokens."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=steps(rows),
        text_bth=torch.randn(rows, 5, 12),
        text_lens=torch.randint(3, 6, (rows,)),
    )


def _flux() -> nn.Module:
    """Two dual and two single blocks, guidance-distilled."""
    return diffusers.FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )


def _flux_inputs(rows: int) -> Inputs:
    """Packed latents and text; the timestep is in 0..1."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        pooled_projections=torch.randn(rows, 10),
        timestep=unit(rows),
        img_ids=grid_ids(4, 4),
        txt_ids=torch.zeros(5, 3),
        guidance=3 + unit(rows),
    )


def _flux2() -> nn.Module:
    """Two dual and two single blocks that share their modulation."""
    return diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 2, 2),
    )


def _flux2_inputs(rows: int) -> Inputs:
    """As Flux, with positions repeated for each row."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=unit(rows),
        img_ids=grid_ids(4, 4, axes=4).expand(rows, -1, -1),
        txt_ids=grid_ids(5, axes=4).expand(rows, -1, -1),
        guidance=3 + unit(rows),
    )


def _flux3() -> nn.Module:
    """Two blocks for each kind of token and three for all of them."""
    return diffusers.Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 2, 2),
    )


def _flux3_inputs(rows: int) -> Inputs:
    """As Flux, with the tokens of a reference image."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=unit(rows),
        img_ids=grid_ids(4, 4, axes=4),
        txt_ids=grid_ids(5, axes=4),
        image_cond_hidden_states=torch.randn(rows, 9, 8),
        image_cond_ids=grid_ids(3, 3, axes=4) + torch.tensor([1.0, 0, 0, 0]),
    )


def _glm() -> nn.Module:
    """Three blocks that carry image and glyph tokens."""
    return diffusers.GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=12,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )


def _glm_inputs(rows: int) -> Inputs:
    """Latents, glyphs and prior tokens, which some rows drop."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        prior_token_id=torch.randint(0, 32, (rows, 16)),
        prior_token_drop=torch.arange(rows) % 2 == 1,
        timestep=steps(rows),
        target_size=torch.randint(64, 128, (rows, 2)).float(),
        crop_coords=torch.randint(0, 8, (rows, 2)).float(),
    )


def _hidream() -> nn.Module:
    """Two dual and two single blocks with experts."""
    return diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[12, 14],
        text_emb_dim=10,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1, 3, 4],
    )


def _hidream_inputs(rows: int) -> Inputs:
    """Latents and two texts; the layers of the second come before the rows."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timesteps=steps(rows),
        encoder_hidden_states_t5=torch.randn(rows, 5, 12),
        encoder_hidden_states_llama3=torch.randn(5, rows, 6, 14),
        pooled_embeds=torch.randn(rows, 10),
    )


SPECIMENS = (
    Specimen(
        "diffusers.DreamLiteTransformer2DModel",
        _dream_lite,
        _dream_lite_inputs,
        note="an attention module of a UNet: no timestep",
    ),
    Specimen(
        "diffusers.ErnieImageTransformer2DModel",
        _ernie,
        _ernie_inputs,
        note="sequence-first tokens inside",
    ),
    Specimen("diffusers.FluxTransformer2DModel", _flux, _flux_inputs),
    Specimen("diffusers.Flux2Transformer2DModel", _flux2, _flux2_inputs),
    Specimen(
        "diffusers.Flux3Transformer2DModel",
        _flux3,
        _flux3_inputs,
        note="text, image and reference image run through blocks of their own first",
    ),
    Specimen("diffusers.GlmImageTransformer2DModel", _glm, _glm_inputs),
    Specimen(
        "diffusers.HiDreamImageTransformer2DModel",
        _hidream,
        _hidream_inputs,
        note="experts; text layers stacked before the batch axis",
    ),
)
