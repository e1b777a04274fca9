"""One-dimensional UNets and Stable Cascade in diffusers."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def unet1d() -> nn.Module:
    """Dance Diffusion."""
    return d.UNet1DModel(
        sample_size=32,
        in_channels=2,
        out_channels=2,
        extra_in_channels=16,
        time_embedding_dim=16,
        block_out_channels=(32, 32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "AttnUpBlock1D", "UpBlock1DNoSkip"),
    )


def unet1d_inputs(rows: int) -> Inputs:
    """A waveform in stereo."""
    return Inputs(sample=torch.randn(rows, 2, 32), timestep=torch.rand(rows))


def unet1d_planner() -> nn.Module:
    """Diffuser: plans of states and actions."""
    return d.UNet1DModel(
        sample_size=16,
        in_channels=6,
        out_channels=6,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D", "DownResnetBlock1D"),
        up_block_types=("UpResnetBlock1D", "UpResnetBlock1D"),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        block_out_channels=(16, 16, 32),
        act_fn="swish",
        norm_num_groups=8,
        layers_per_block=1,
    )


def unet1d_planner_inputs(rows: int) -> Inputs:
    """Sixteen steps."""
    return Inputs(sample=torch.randn(rows, 6, 16), timestep=torch.randint(1, 20, (rows,)))


def cascade(**options: object) -> nn.Module:
    """Two levels of residual, timestep and attention blocks."""
    return d.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(2, 4),
        down_num_layers_per_block=(2, 3),
        up_num_layers_per_block=(3, 2),
        clip_text_pooled_in_channels=24,
        clip_seq=2,
        dropout=(0.0, 0.0),
        **options,
    )


def cascade_inputs(rows: int) -> Inputs:
    """The prior: text, pooled text and an image."""
    return Inputs(
        sample=torch.randn(rows, 4, 8, 8),
        timestep_ratio=torch.rand(rows),
        clip_text_pooled=torch.randn(rows, 1, 24),
        clip_text=torch.randn(rows, 5, 24),
        clip_img=torch.randn(rows, 1, 24),
    )


def cascade_decoder() -> nn.Module:
    """The decoder: patches, no attention on the first level, repeated blocks."""
    residual = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return cascade(
        patch_size=2,
        block_types_per_layer=(residual, (*residual, "SDCascadeAttnBlock")),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(2, 2),
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        timestep_conditioning_type=("sca",),
    )


def cascade_decoder_inputs(rows: int) -> Inputs:
    """Pooled text and the latents of the prior."""
    return Inputs(
        sample=torch.randn(rows, 4, 16, 16),
        timestep_ratio=torch.rand(rows),
        clip_text_pooled=torch.randn(rows, 1, 24),
        effnet=torch.randn(rows, 4, 6, 6),
    )


def _specimen(name: str, *parts: object, note: str = "") -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("UNet1DModel", unet1d, unet1d_inputs),
    _specimen("UNet1DModel.planner", unet1d_planner, unet1d_planner_inputs),
    _specimen(
        "StableCascadeUNet",
        lambda: cascade(clip_text_in_channels=24, clip_image_in_channels=24, switch_level=(False,)),
        cascade_inputs,
    ),
    _specimen(
        "StableCascadeUNet.decoder",
        cascade_decoder,
        cascade_decoder_inputs,
        note="runs the same blocks several times, with a convolution between",
    ),
)
