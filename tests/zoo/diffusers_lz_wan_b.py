"""Video transformers of the Wan family in diffusers, and what is built like them."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def wan(**options: object) -> nn.Module:
    """Cross attention into the text."""
    return d.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        **options,
    )


def wan_inputs(rows: int) -> Inputs:
    """Three latent frames, one timestep for every row."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 8, 8),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=torch.randn(rows, 5, 16),
    )


def wan_tokens_inputs(rows: int) -> Inputs:
    """A timestep for every token: the first frame is given and has timestep 0 (Wan 2.2 TI2V)."""
    inputs = wan_inputs(rows)
    steps = torch.randint(1, 1000, (rows, 1)).repeat(1, 48)
    steps[:, :16] = 0
    inputs.kwargs["timestep"] = steps
    return inputs


def wan_image_inputs(rows: int) -> Inputs:
    """With the tokens of an image encoder."""
    inputs = wan_inputs(rows)
    inputs.kwargs["encoder_hidden_states_image"] = torch.randn(rows, 7, 12)
    return inputs


def vace() -> nn.Module:
    """A control branch whose hints are added after some blocks."""
    return d.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
        vace_in_channels=6,
    )


def vace_inputs(rows: int) -> Inputs:
    """A control video; its scales are shared by all rows."""
    inputs = wan_inputs(rows)
    inputs.kwargs["control_hidden_states"] = torch.randn(rows, 6, 3, 8, 8)
    inputs.kwargs["control_hidden_states_scale"] = torch.tensor([1.0, 0.8])
    return inputs


def animate() -> nn.Module:
    """Faces are encoded apart and injected after every other block."""
    return d.WanAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        image_dim=12,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=16,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )


def animate_inputs(rows: int) -> Inputs:
    """A reference frame, two frames of poses and eight of faces."""
    return Inputs(
        hidden_states=torch.randn(rows, 12, 3, 8, 8),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=torch.randn(rows, 5, 16),
        encoder_hidden_states_image=torch.randn(rows, 7, 12),
        pose_hidden_states=torch.randn(rows, 4, 2, 8, 8),
        face_pixel_values=torch.rand(rows, 3, 8, 16, 16) * 2 - 1,
    )


def animate_whole_inputs(rows: int) -> Inputs:
    """All faces through their encoder at once."""
    inputs = animate_inputs(rows)
    inputs.kwargs["motion_encode_batch_size"] = 1024
    return inputs


def skyreels(**options: object) -> nn.Module:
    """Wan with an optional mask and timesteps by frame."""
    return d.SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        **options,
    )


def skyreels_forcing_inputs(rows: int) -> Inputs:
    """Diffusion forcing: a timestep for every frame."""
    inputs = wan_inputs(rows)
    inputs.kwargs["timestep"] = torch.randint(1, 1000, (rows, 3))
    inputs.kwargs["enable_diffusion_forcing"] = True
    return inputs


def sana_video() -> nn.Module:
    """Linear attention with rotary positions."""
    return d.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        rope_max_seq_len=32,
    )


def sana_video_inputs(rows: int) -> Inputs:
    """Masked text."""
    inputs = wan_inputs(rows)
    inputs.kwargs["encoder_attention_mask"] = torch.ones(rows, 5)
    return inputs


def sana_wm() -> nn.Module:
    """Recurrent linear attention, softmax attention in every second block."""
    return d.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=4,
        hidden_size=24,
        num_attention_heads=2,
        linear_head_dim=12,
        softmax_every_n=2,
        caption_channels=16,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=4,
        image_size=64,
    )


def sana_wm_inputs(rows: int) -> Inputs:
    """Without a camera; a timestep for every frame, 0 for the first."""
    steps = torch.randint(1, 1000, (rows, 1, 1)).repeat(1, 1, 3)
    steps[..., 0] = 0
    return Inputs(
        hidden_states=torch.randn(rows, 4, 3, 4, 4),
        timestep=steps,
        encoder_hidden_states=torch.randn(rows, 1, 5, 16),
        encoder_attention_mask=torch.ones(rows, 5, dtype=torch.long),
        chunk_plucker=torch.randn(rows, 6, 3, 4, 4),
    )


def animate2() -> nn.Module:
    """Takes a list of videos; blocks write their keys and values to a cache."""
    return d.WanAnimate2Transformer3DModel(
        text_len=5,
        in_dim=8,
        dim=24,
        ffn_dim=32,
        freq_dim=16,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=3,
        use_img_emb=False,
    )


def animate2_inputs(rows: int) -> Inputs:
    """The reference pass: the pass that denoises needs a compiled kernel."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return Inputs(
        hidden_states=[torch.randn(4, 3, 8, 8) for _ in range(rows)],
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_hidden_states=[torch.randn(5, 16) for _ in range(rows)],
        condition_latents=[torch.randn(4, 3, 8, 8) for _ in range(rows)],
        kv_cache=WanAnimate2KVCache(3),
        kv_cache_mode="extract",
        seq_len=48,
        offset_grid_sizes=torch.tensor([[3, 4, 4]]).repeat(rows, 1),
    )


def _specimen(name: str, *parts: object, note: str = "", batched: bool = True) -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, batched=batched, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("WanTransformer3DModel", wan, wan_inputs),
    _specimen(
        "WanTransformer3DModel.tokens", wan, wan_tokens_inputs, note="a timestep for every token"
    ),
    _specimen(
        "WanTransformer3DModel.image",
        lambda: wan(image_dim=12, added_kv_proj_dim=24),
        wan_image_inputs,
    ),
    _specimen("WanVACETransformer3DModel", vace, vace_inputs),
    _specimen(
        "WanAnimateTransformer3DModel",
        animate,
        animate_inputs,
        note="encodes faces in chunks of eight frames, so larger batches make more calls",
    ),
    _specimen("WanAnimateTransformer3DModel.whole", animate, animate_whole_inputs),
    _specimen(
        "WanAnimate2Transformer3DModel",
        animate2,
        animate2_inputs,
        note="lists of videos in and out, and a cache that the blocks write to",
        batched=False,
    ),
    _specimen("SkyReelsV2Transformer3DModel", skyreels, wan_inputs),
    _specimen(
        "SkyReelsV2Transformer3DModel.forcing",
        lambda: skyreels(num_frame_per_block=3),
        skyreels_forcing_inputs,
        note="a timestep for every frame",
    ),
    _specimen("SanaVideoTransformer3DModel", sana_video, sana_video_inputs),
    _specimen(
        "SanaWMTransformer3DModel", sana_wm, sana_wm_inputs, note="a timestep for every frame"
    ),
)
