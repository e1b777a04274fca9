"""UNets of diffusers, and the transformers that they are made of."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen

LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
}


def unet2d() -> nn.Module:
    """Attention on two of three levels, no text."""
    return d.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def unet2d_inputs(rows: int) -> Inputs:
    """An image."""
    return Inputs(sample=torch.randn(rows, 3, 8, 8), timestep=torch.randint(1, 1000, (rows,)))


def unet2d_condition(**options: object) -> nn.Module:
    """The UNet of Stable Diffusion."""
    return d.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        **LEVELS,
        **options,
    )


def unet2d_condition_inputs(rows: int) -> Inputs:
    """A latent and its text."""
    return Inputs(
        sample=torch.randn(rows, 4, 8, 8),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=torch.randn(rows, 5, 24),
    )


def sdxl() -> nn.Module:
    """The UNet of SDXL: several transformer layers per block, sizes as a condition."""
    return unet2d_condition(
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
    )


def sdxl_inputs(rows: int) -> Inputs:
    """Pooled text and six sizes."""
    inputs = unet2d_condition_inputs(rows)
    inputs.kwargs["added_cond_kwargs"] = {
        "text_embeds": torch.randn(rows, 16),
        "time_ids": torch.rand(rows, 6) * 512,
    }
    return inputs


def unet3d() -> nn.Module:
    """Folds frames into the batch for its spatial layers."""
    return d.UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        attention_head_dim=4,
        **LEVELS,
    )


def unet_motion() -> nn.Module:
    """AnimateDiff: motion modules between the layers of an image UNet."""
    return d.UNetMotionModel(
        sample_size=8,
        down_block_types=(
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "DownBlockMotion",
        ),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        **LEVELS,
    )


def video_inputs(rows: int) -> Inputs:
    """Three frames behind the channels."""
    inputs = unet2d_condition_inputs(rows)
    inputs.kwargs["sample"] = torch.randn(rows, 4, 3, 8, 8)
    return inputs


def motion_inputs(rows: int) -> Inputs:
    """The text is repeated for every frame before the call, as AnimateDiff does."""
    inputs = video_inputs(rows)
    inputs.kwargs["encoder_hidden_states"] = torch.randn(rows, 5, 24).repeat_interleave(3, dim=0)
    return inputs


def unet_spatio_temporal() -> nn.Module:
    """Stable Video Diffusion."""
    return d.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=2,
        cross_attention_dim=24,
        num_attention_heads=(2, 2),
        num_frames=3,
    )


def unet_spatio_temporal_inputs(rows: int) -> Inputs:
    """Three frames in front of the channels, one token of an image."""
    return Inputs(
        sample=torch.randn(rows, 3, 8, 8, 8),
        timestep=torch.rand(rows) * 2,
        encoder_hidden_states=torch.randn(rows, 1, 24),
        added_time_ids=torch.rand(rows, 3) * 10,
    )


def controlnet_xs() -> nn.Module:
    """Two UNets that pass features both ways after every layer."""
    return d.UNetControlNetXSModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        num_attention_heads=2,
        upcast_attention=False,
        ctrl_conditioning_embedding_out_channels=(4, 8),
        ctrl_block_out_channels=(8, 8, 8),
        ctrl_num_attention_heads=2,
        ctrl_max_norm_num_groups=4,
        **LEVELS,
    )


def controlnet_xs_inputs(rows: int) -> Inputs:
    """A control image of twice the size."""
    inputs = unet2d_condition_inputs(rows)
    inputs.kwargs["controlnet_cond"] = torch.rand(rows, 3, 16, 16)
    return inputs


def _specimen(name: str, *parts: object, note: str = "") -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("UNet2DModel", unet2d, unet2d_inputs),
    _specimen("UNet2DConditionModel", unet2d_condition, unet2d_condition_inputs),
    _specimen("UNet2DConditionModel.sdxl", sdxl, sdxl_inputs),
    _specimen("UNet3DConditionModel", unet3d, video_inputs),
    _specimen(
        "UNetMotionModel",
        unet_motion,
        motion_inputs,
        note="the text has frames times rows entries, the latent has rows",
    ),
    _specimen(
        "UNetSpatioTemporalConditionModel", unet_spatio_temporal, unet_spatio_temporal_inputs
    ),
    _specimen("UNetControlNetXSModel", controlnet_xs, controlnet_xs_inputs),
)
