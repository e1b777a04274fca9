"""Image transformers of diffusers, AuraFlow to DiT, shrunk."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import grid_ids, lengths_mask, steps, unit
from tests.zoo.specimen import Specimen


def _aura_flow() -> nn.Module:
    """Two joint and two single blocks."""
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )


def _aura_flow_inputs(rows: int) -> Inputs:
    """Latents and text; the timestep is in 0..1."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=unit(rows),
    )


def _bria() -> nn.Module:
    """Two dual and two single blocks."""
    return diffusers.BriaTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=[4, 2, 2],
    )


def _bria_inputs(rows: int) -> Inputs:
    """Packed latents and text with positions that all rows share."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=steps(rows),
        img_ids=grid_ids(4, 4),
        txt_ids=torch.zeros(5, 3),
    )


def _bria_fibo() -> nn.Module:
    """Two dual and two single blocks, each with a text layer of its own."""
    return diffusers.BriaFiboTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=[4, 2, 2],
        text_encoder_dim=10,
    )


def _bria_fibo_inputs(rows: int) -> Inputs:
    """As Bria, with a list of text layers, one for each block, and a joint attention mask."""
    mask = torch.cat([torch.ones(rows, 16), lengths_mask(rows, 5, 3).float()], 1)
    mask = torch.einsum("bi,bj->bij", mask, mask)
    mask = torch.where(mask == 1, 0.0, -10000.0)[:, None]
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        text_encoder_layers=[torch.randn(rows, 5, 10) for _ in range(4)],
        timestep=steps(rows),
        img_ids=grid_ids(4, 4),
        txt_ids=torch.zeros(5, 3),
        joint_attention_kwargs={"attention_mask": mask},
    )


def _bria_fibo2() -> nn.Module:
    """Four blocks, two of which read the text again."""
    return diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=12,
        injection_layer_ids=(1, 3),
        perceiver_num_layers=1,
        min_num_gist_tokens=3,
        max_num_gist_tokens=6,
        gist_step=3,
        gist_min_text_len=2,
        gist_max_text_len=6,
        axes_dims=(4, 2, 2),
        axes_lens=(64, 16, 16),
    )


def _bria_fibo2_inputs(rows: int) -> Inputs:
    """Latents and a bundle of text layers: one for the gist and one for each injection."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=unit(rows),
        encoder_hidden_states=torch.randn(rows, 3, 6, 12),
    )


def _chroma() -> nn.Module:
    """Two dual and two single blocks, modulated by one approximator."""
    return diffusers.ChromaTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )


def _chroma_inputs(rows: int) -> Inputs:
    """Packed latents and text; the timestep is in 0..1."""
    mask = torch.cat([lengths_mask(rows, 5, 3), torch.ones(rows, 16).long()], 1)
    return Inputs(
        hidden_states=torch.randn(rows, 16, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=unit(rows),
        img_ids=grid_ids(4, 4),
        txt_ids=torch.zeros(5, 3),
        attention_mask=mask.bool(),
    )


def _cog_view3_plus() -> nn.Module:
    """Three blocks that carry image and text tokens."""
    return diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=12,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
    )


def _cog_view_inputs(rows: int) -> Inputs:
    """Latents, text and the sizes that micro-conditioning wants."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        timestep=steps(rows),
        original_size=torch.randint(64, 128, (rows, 2)).float(),
        target_size=torch.randint(64, 128, (rows, 2)).float(),
        crop_coords=torch.randint(0, 8, (rows, 2)).float(),
    )


def _cog_view4() -> nn.Module:
    """Three blocks that carry image and text tokens."""
    return diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=12,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )


def _dit() -> nn.Module:
    """Three adaLN-zero blocks, conditioned on a class."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _dit_inputs(rows: int) -> Inputs:
    """Latents and a class label."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=steps(rows),
        class_labels=torch.randint(0, 10, (rows,)),
    )


SPECIMENS = (
    Specimen("diffusers.AuraFlowTransformer2DModel", _aura_flow, _aura_flow_inputs),
    Specimen("diffusers.BriaTransformer2DModel", _bria, _bria_inputs),
    Specimen(
        "diffusers.BriaFiboTransformer2DModel",
        _bria_fibo,
        _bria_fibo_inputs,
        note="a list of text layers, one tensor for each block",
    ),
    Specimen("diffusers.BriaFibo2Transformer2DModel", _bria_fibo2, _bria_fibo2_inputs),
    Specimen("diffusers.ChromaTransformer2DModel", _chroma, _chroma_inputs),
    Specimen("diffusers.CogView3PlusTransformer2DModel", _cog_view3_plus, _cog_view_inputs),
    Specimen("diffusers.CogView4Transformer2DModel", _cog_view4, _cog_view_inputs),
    Specimen("diffusers.DiTTransformer2DModel", _dit, _dit_inputs),
)
