"""Image transformers of diffusers, HunyuanDiT to Krea, shrunk."""

from __future__ import annotations

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import grid_ids, lengths_mask, steps, unit
from tests.zoo.specimen import Specimen

_TEXT, _IMAGE, _PADDING = 3, 2, -1  # what Ideogram's indicator says of a token


def _hunyuan_dit() -> nn.Module:
    """Six blocks with long skips."""
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=6,
        mlp_ratio=2.0,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=10,
        text_len=5,
        text_len_t5=6,
    )


def _hunyuan_dit_inputs(rows: int) -> Inputs:
    """Latents, two texts with masks, sizes, and rotary tables that all rows share."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=steps(rows).float(),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        text_embedding_mask=lengths_mask(rows, 5, 3),
        encoder_hidden_states_t5=torch.randn(rows, 6, 16),
        text_embedding_mask_t5=lengths_mask(rows, 6, 3),
        image_meta_size=torch.randint(64, 128, (rows, 6)).float(),
        style=torch.zeros(rows, dtype=torch.long),
        image_rotary_emb=get_2d_rotary_pos_embed(8, ((0, 0), (4, 4)), (4, 4), output_type="pt"),
    )


def _hunyuan_image() -> nn.Module:
    """Two dual and two single blocks behind a token refiner."""
    return diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=(2, 2),
        text_embed_dim=12,
        text_embed_2_dim=10,
        rope_axes_dim=(4, 4),
    )


def _hunyuan_image_inputs(rows: int) -> Inputs:
    """Latents and two texts with masks of random lengths."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=steps(rows).float(),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_attention_mask=lengths_mask(rows, 5, 3),
        encoder_hidden_states_2=torch.randn(rows, 6, 10),
        encoder_attention_mask_2=lengths_mask(rows, 6, 3),
    )


def _ideogram4() -> nn.Module:
    """Three blocks on one sequence of text and image tokens."""
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=8,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=10,
        mrope_section=(2, 2, 2),
    )


def _ideogram4_inputs(rows: int) -> Inputs:
    """Tokens of padding, text and image, told apart by indicators; the timestep is in 0..1."""
    text = lengths_mask(rows, 5, 3).flip(1)
    indicator = torch.where(text == 1, _TEXT, _PADDING)
    indicator = torch.cat([indicator, torch.full((rows, 16), _IMAGE)], 1)
    places = torch.cat([grid_ids(5), grid_ids(4, 4) + 5]).long()
    return Inputs(
        hidden_states=torch.randn(rows, 21, 8),
        timestep=unit(rows),
        encoder_hidden_states=torch.randn(rows, 21, 10),
        position_ids=places.expand(rows, -1, -1).contiguous(),
        segment_ids=torch.where(indicator == _PADDING, -1, 1),
        indicator=indicator,
    )


def _krea2() -> nn.Module:
    """Three blocks behind a fusion of text layers."""
    return diffusers.Krea2Transformer2DModel(
        in_channels=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=12,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )


def _krea2_inputs(rows: int) -> Inputs:
    """Packed latents and a stack of text layers; the timestep is in 0..1."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 3, 12),
        timestep=unit(rows),
        position_ids=torch.cat([torch.zeros(5, 3), grid_ids(4, 4)]),
        encoder_attention_mask=lengths_mask(rows, 5, 3).bool(),
    )


SPECIMENS = (
    Specimen("diffusers.HunyuanDiT2DModel", _hunyuan_dit, _hunyuan_dit_inputs, note="long skips"),
    Specimen("diffusers.HunyuanImageTransformer2DModel", _hunyuan_image, _hunyuan_image_inputs),
    Specimen("diffusers.Ideogram4Transformer2DModel", _ideogram4, _ideogram4_inputs),
    Specimen("diffusers.Krea2Transformer2DModel", _krea2, _krea2_inputs),
)
