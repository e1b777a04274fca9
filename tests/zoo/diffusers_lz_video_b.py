"""Video transformers of diffusers, L to Z, other than the Wan family."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def ltx() -> nn.Module:
    """Cross attention into the text."""
    return d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=24,
    )


def ltx_inputs(rows: int) -> Inputs:
    """Packed latents of three frames."""
    return Inputs(
        hidden_states=torch.randn(rows, 12, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_attention_mask=torch.ones(rows, 5),
        num_frames=3,
        height=2,
        width=2,
        rope_interpolation_scale=(0.3, 32, 32),
    )


def ltx_tokens_inputs(rows: int) -> Inputs:
    """Image to video: a timestep for every token, 0 in the first frame."""
    inputs = ltx_inputs(rows)
    steps = torch.randint(1, 1000, (rows, 1)).repeat(1, 12)
    steps[:, :4] = 0
    inputs.kwargs["timestep"] = steps
    return inputs


def ltx2(**options: object) -> nn.Module:
    """A video and an audio stream that attend to each other."""
    return d.LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=24,
        **options,
    )


def ltx2_inputs(rows: int) -> Inputs:
    """Three frames and six audio tokens."""
    return Inputs(
        hidden_states=torch.randn(rows, 12, 8),
        audio_hidden_states=torch.randn(rows, 6, 6),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        audio_encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_attention_mask=torch.ones(rows, 5),
        audio_encoder_attention_mask=torch.ones(rows, 5),
        num_frames=3,
        height=2,
        width=2,
        audio_num_frames=6,
    )


def ltx2_gated() -> nn.Module:
    """LTX 2.3: gated attention and a modulated prompt."""
    return ltx2(
        gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True
    )


def ltx2_gated_inputs(rows: int) -> Inputs:
    """The noise level besides the timestep."""
    inputs = ltx2_inputs(rows)
    inputs.kwargs["sigma"] = inputs.kwargs["timestep"]
    return inputs


def sana_wm_refiner() -> nn.Module:
    """The video stream of LTX 2; the audio modules are there and never called."""
    return d.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=24,
    )


def sana_wm_refiner_inputs(rows: int) -> Inputs:
    """The rotary table is an argument with rows."""
    angles = (torch.arange(12)[:, None] * torch.linspace(0.1, 1.0, 32)).repeat(rows, 1, 1)
    return Inputs(
        hidden_states=torch.randn(rows, 12, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        video_rotary_emb=(angles.cos(), angles.sin()),
        encoder_attention_mask=torch.ones(rows, 5),
    )


def latte() -> nn.Module:
    """Spatial and temporal blocks in turn: frames, then patches, are folded into the batch."""
    return d.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=24,
        video_length=3,
    )


def latte_inputs(rows: int) -> Inputs:
    """Three frames."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        enable_temporal_attentions=True,
    )


def mochi() -> nn.Module:
    """Dual stream; the last block leaves the text as it is."""
    return d.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=12,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=16,
    )


def mochi_inputs(rows: int) -> Inputs:
    """Captions of different lengths."""
    lengths = torch.randint(3, 6, (rows, 1))
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 4, 4),
        encoder_hidden_states=torch.randn(rows, 5, 16),
        timestep=torch.rand(rows) * 999,
        encoder_attention_mask=torch.arange(5) < lengths,
    )


def motif() -> nn.Module:
    """Dual stream, single stream, and decoder blocks that start again from the embedding."""
    return d.MotifVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=5,
        num_decoder_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=24,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )


def motif_inputs(rows: int) -> Inputs:
    """Masked text."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 4, 4),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_attention_mask=torch.ones(rows, 5),
    )


def minimax_h3() -> nn.Module:
    """Text, video and audio in one sequence; a table of timesteps that tokens point into."""
    return d.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=2,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=6,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=24,
        time_embed_dim=12,
        rope_freq_dim=2,
    )


def minimax_h3_inputs(rows: int) -> Inputs:
    """Five words, two frames of four patches, three audio tokens; one timestep for all rows."""
    index = torch.arange(16)
    return Inputs(
        hidden_states=torch.randn(rows, 8, 16),
        audio_hidden_states=torch.randn(rows, 3, 6),
        encoder_hidden_states=torch.randn(rows, 5, 16),
        timestep=torch.tensor([0.0, 437.0]),
        timestep_indices=(index >= 5).long(),
        token_tags=(index >= 5).long() + (index >= 13).long(),
        position_ids=torch.stack([index, index % 4, index % 2], dim=1).float(),
        video_indices=index[5:13],
        audio_indices=index[13:],
        text_indices=index[:5],
    )


def _specimen(name: str, *parts: object, note: str = "") -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("LTXVideoTransformer3DModel", ltx, ltx_inputs),
    _specimen(
        "LTXVideoTransformer3DModel.tokens",
        ltx,
        ltx_tokens_inputs,
        note="a timestep for every token",
    ),
    _specimen("LTX2VideoTransformer3DModel", ltx2, ltx2_inputs),
    _specimen("LTX2VideoTransformer3DModel.gated", ltx2_gated, ltx2_gated_inputs),
    _specimen("SanaWMLTX2RefinerTransformer3DModel", sana_wm_refiner, sana_wm_refiner_inputs),
    _specimen("LatteTransformer3DModel", latte, latte_inputs),
    _specimen("MochiTransformer3DModel", mochi, mochi_inputs),
    _specimen("MotifVideoTransformer3DModel", motif, motif_inputs),
    _specimen(
        "MiniMaxH3Transformer3DModel",
        minimax_h3,
        minimax_h3_inputs,
        note="one table of timesteps for all rows; tokens point into it",
    ),
)
