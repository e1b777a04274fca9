"""UNets of diffusers, AudioLDM2 to Kandinsky3, shrunk."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import lengths_mask, steps
from tests.zoo.specimen import Specimen


def _audio_ldm2() -> nn.Module:
    """Three levels, two of them with attention to two texts."""
    return diffusers.AudioLDM2UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=([None, 12, 10],) * 3,
        attention_head_dim=2,
    )


def _audio_ldm2_inputs(rows: int) -> Inputs:
    """Latents of a spectrogram and two texts, the second with a mask."""
    return Inputs(
        sample=torch.randn(rows, 4, 16, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_hidden_states_1=torch.randn(rows, 6, 10),
        encoder_attention_mask_1=lengths_mask(rows, 6, 3),
    )


def _dream_lite_unet() -> nn.Module:
    """Three levels with attention, separable convolutions and one head for keys."""
    return diffusers.DreamLiteUNetModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        use_linear_projection=True,
        encoder_hid_dim=14,
        encoder_hid_dim_type="text_proj_rms",
        addition_embed_type="time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24,
        ff_mult=2,
    )


def _dream_lite_unet_inputs(rows: int) -> Inputs:
    """Latents, text and the sizes that micro-conditioning wants, in a dict."""
    return Inputs(
        sample=torch.randn(rows, 4, 16, 16),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 14),
        added_cond_kwargs={"time_ids": torch.randint(0, 64, (rows, 6)).float()},
    )


def _i2vgen_xl() -> nn.Module:
    """Two levels with spatial and temporal attention."""
    return diffusers.I2VGenXLUNet(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    )


def _i2vgen_xl_inputs(rows: int) -> Inputs:
    """Latents and those of the first frame, text, an image embedding and frame rates."""
    return Inputs(
        sample=torch.randn(rows, 4, 3, 8, 8),
        timestep=steps(rows),
        fps=torch.randint(8, 32, (rows,)),
        image_latents=torch.randn(rows, 4, 3, 8, 8),
        image_embeddings=torch.randn(rows, 12),
        encoder_hidden_states=torch.randn(rows, 5, 12),
    )


def _kandinsky3() -> nn.Module:
    """Four levels, three of them with attention."""
    return diffusers.Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 16, 32, 32),
        cross_attention_dim=16,
        encoder_hid_dim=12,
    )


def _kandinsky3_inputs(rows: int) -> Inputs:
    """Latents and text with a mask."""
    return Inputs(
        sample=torch.randn(rows, 4, 16, 16),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_attention_mask=lengths_mask(rows, 5, 3),
    )


SPECIMENS = (
    Specimen("diffusers.AudioLDM2UNet2DConditionModel", _audio_ldm2, _audio_ldm2_inputs),
    Specimen("diffusers.DreamLiteUNetModel", _dream_lite_unet, _dream_lite_unet_inputs),
    Specimen(
        "diffusers.I2VGenXLUNet",
        _i2vgen_xl,
        _i2vgen_xl_inputs,
        note="frames folded into the batch",
    ),
    Specimen("diffusers.Kandinsky3UNet", _kandinsky3, _kandinsky3_inputs),
)
