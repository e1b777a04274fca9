"""Video transformers of diffusers, Allegro to Cosmos, shrunk."""

from __future__ import annotations

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import lengths_mask, steps, unit
from tests.zoo.specimen import Specimen


def _allegro() -> nn.Module:
    """Three blocks on tokens of all frames."""
    return diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        cross_attention_dim=24,
        sample_height=10,
        sample_width=10,
        sample_frames=3,
        caption_channels=12,
    )


def _allegro_inputs(rows: int) -> Inputs:
    """Latents, text with a mask, and rotary tables that all rows share."""
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (5, 5)), (5, 5), 3)
    places = torch.cartesian_prod(t.long(), h.long(), w.long()).T[:, None]
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 10, 10),
        encoder_hidden_states=torch.randn(rows, 6, 12),
        timestep=steps(rows),
        encoder_attention_mask=lengths_mask(rows, 6, 3),
        image_rotary_emb=(tuple(tables), tuple(places)),
    )


def _any_flow() -> nn.Module:
    """Three blocks, with two timesteps for each frame."""
    return diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )


def _any_flow_inputs(rows: int) -> Inputs:
    """Frame-first latents and two timesteps of shape (rows, frames)."""
    times = steps(rows)[:, None].expand(rows, 3)
    return Inputs(
        hidden_states=torch.randn(rows, 3, 4, 8, 8),
        timestep=times.contiguous(),
        r_timestep=times // 2,
        encoder_hidden_states=torch.randn(rows, 5, 12),
    )


def _any_flow_far() -> nn.Module:
    """Three causal blocks over chunks of frames."""
    return diffusers.AnyFlowFARTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        chunk_partition=(1, 2),
    )


def _any_flow_far_inputs(rows: int) -> Inputs:
    """As AnyFlow, with frames in chunks and no cache."""
    times = steps(rows)[:, None].expand(rows, 3)
    return Inputs(
        hidden_states=torch.randn(rows, 3, 4, 8, 8),
        timestep=times.contiguous(),
        r_timestep=times // 2,
        encoder_hidden_states=torch.randn(rows, 5, 12),
        chunk_partition=[1, 2],
    )


def _chrono_edit() -> nn.Module:
    """Three blocks of the Wan kind with tokens of a reference image."""
    return diffusers.ChronoEditTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=8,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        image_dim=10,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        rope_temporal_skip_len=2,
    )


def _chrono_edit_inputs(rows: int) -> Inputs:
    """Two frames of latents with their condition, text and image embeddings."""
    return Inputs(
        hidden_states=torch.randn(rows, 8, 2, 8, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_hidden_states_image=torch.randn(rows, 6, 10),
    )


def _rotary(dim: int) -> tuple[Tensor, Tensor]:
    """Rotary tables of CogVideoX for three frames of 4x4 patches."""
    return get_3d_rotary_pos_embed(dim, ((0, 0), (4, 4)), (4, 4), 3)


def _cog_video_x() -> nn.Module:
    """Three blocks that carry video and text tokens."""
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=12,
        num_layers=3,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
    )


def _cog_video_x_inputs(rows: int) -> Inputs:
    """Frame-first latents, text, and rotary tables that all rows share."""
    return Inputs(
        hidden_states=torch.randn(rows, 3, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=steps(rows),
        image_rotary_emb=_rotary(16),
    )


def _consis_id() -> nn.Module:
    """Four blocks; faces are added behind every other one."""
    return diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=12,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_interval=2,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=10,
        LFE_vit_dim=14,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=3,
        LFE_num_querie=6,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=2,
    )


def _consis_id_inputs(rows: int) -> Inputs:
    """As CogVideoX, with a face and a list of its features at every scale."""
    return Inputs(
        hidden_states=torch.randn(rows, 3, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=steps(rows),
        image_rotary_emb=_rotary(16),
        id_cond=torch.randn(rows, 10),
        id_vit_hidden=[torch.randn(rows, 7, 14) for _ in range(2)],
    )


def _cosmos() -> nn.Module:
    """Three blocks with learnable positions."""
    return diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        mlp_ratio=2.0,
        text_embed_dim=12,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
    )


def _cosmos_inputs(rows: int) -> Inputs:
    """Latents, text, and a padding mask of one row that all rows share."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=unit(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        fps=24,
        padding_mask=torch.zeros(1, 1, 16, 16),
    )


SPECIMENS = (
    Specimen("diffusers.AllegroTransformer3DModel", _allegro, _allegro_inputs),
    Specimen(
        "diffusers.AnyFlowTransformer3DModel",
        _any_flow,
        _any_flow_inputs,
        note="a timestep for each frame",
    ),
    Specimen(
        "diffusers.AnyFlowFARTransformer3DModel",
        _any_flow_far,
        _any_flow_far_inputs,
        note="flex attention; without its cache",
    ),
    Specimen("diffusers.ChronoEditTransformer3DModel", _chrono_edit, _chrono_edit_inputs),
    Specimen("diffusers.CogVideoXTransformer3DModel", _cog_video_x, _cog_video_x_inputs),
    Specimen(
        "diffusers.ConsisIDTransformer3DModel",
        _consis_id,
        _consis_id_inputs,
        note="face features are a list; cross-attention between the blocks",
    ),
    Specimen("diffusers.CosmosTransformer3DModel", _cosmos, _cosmos_inputs),
)
