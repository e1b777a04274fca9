"""Video transformers of diffusers, Cosmos3, JoyImage and Kandinsky, shrunk."""

from __future__ import annotations

import math

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import grid_ids, lengths_mask, steps
from tests.zoo.specimen import Specimen


def _cosmos3() -> nn.Module:
    """Three layers of a language model with weights of their own for what is generated."""
    return diffusers.Cosmos3OmniTransformer(
        head_dim=12,
        hidden_size=24,
        intermediate_size=32,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=3,
        num_key_value_heads=1,
        patch_latent_dim=16,
        vocab_size=32,
        rope_axes_dim=(2, 2, 2),
    )


def cosmos3_inputs(words: int = 5, grid: tuple[int, int, int] = (3, 4, 4)) -> Inputs:
    """One packed sequence: text tokens, then the patches of one video (2x2 latents each)."""
    (f, h, w), patches = grid, math.prod(grid)
    text, video = torch.arange(words), torch.arange(words, words + patches)
    places = torch.cat([text.expand(3, words).float(), grid_ids(*grid).T + words], 1)
    return Inputs(
        input_ids=torch.randint(0, 32, (words,)),
        text_indexes=text,
        position_ids=places,
        und_len=words,
        sequence_length=words + patches,
        vision_tokens=[torch.randn(1, 4, f, 2 * h, 2 * w)],
        vision_token_shapes=[grid],
        vision_sequence_indexes=video,
        vision_mse_loss_indexes=video,
        vision_timesteps=steps(1).expand(patches).clone(),
        vision_noisy_frame_indexes=[torch.arange(f)],
    )


def _joy() -> nn.Module:
    """Three blocks that carry image and text tokens."""
    return diffusers.JoyImageEditTransformer3DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        text_dim=12,
        mlp_width_ratio=2.0,
        num_layers=3,
        rope_dim_list=[4, 2, 2],
    )


def _joy_inputs(rows: int) -> Inputs:
    """Latents of a reference and of the result, and text."""
    return Inputs(
        hidden_states=torch.randn(rows, 2, 4, 1, 8, 8),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
    )


def _joy_plus() -> nn.Module:
    """As JoyImageEdit, on patches of images of any size."""
    return diffusers.JoyImageEditPlusTransformer3DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        text_dim=12,
        mlp_width_ratio=2.0,
        num_layers=3,
        rope_dim_list=[4, 2, 2],
    )


def _joy_plus_inputs(rows: int) -> Inputs:
    """Padded patches of two images a row, with the list of their sizes for each row."""
    return Inputs(
        hidden_states=torch.randn(rows, 26, 4, 1, 2, 2),
        timestep=steps(rows),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        encoder_hidden_states_mask=lengths_mask(rows, 5, 3),
        shape_list=[[(1, 4, 4), (1, 3, 3)] for _ in range(rows)],
    )


def _kandinsky5() -> nn.Module:
    """Three decoder blocks, and one encoder block for the text."""
    return diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=12,
        in_text_dim2=10,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 2, 2),
    )


def _kandinsky5_inputs(rows: int) -> Inputs:
    """Channel-last latents, two texts, and lists of positions that all rows share."""
    return Inputs(
        hidden_states=torch.randn(rows, 3, 10, 10, 4),
        encoder_hidden_states=torch.randn(rows, 6, 12),
        pooled_projections=torch.randn(rows, 10),
        timestep=steps(rows),
        visual_rope_pos=[torch.arange(3), torch.arange(5), torch.arange(5)],
        text_rope_pos=torch.arange(6),
    )


def _kandinsky6() -> nn.Module:
    """Three blocks for video and audio at once."""
    return diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=12,
        in_text_dim2=10,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 2, 2),
        in_audio_dim=6,
        out_audio_dim=6,
    )


def _kandinsky6_inputs(rows: int) -> Inputs:
    """Channel-last latents with their condition, audio, and two texts."""
    return Inputs(
        hidden_states=torch.randn(rows, 3, 10, 10, 9),
        encoder_hidden_states=torch.randn(rows, 6, 12),
        pooled_projections=torch.randn(rows, 10),
        timestep=steps(rows),
        audio_hidden_states=torch.randn(rows, 7, 6),
    )


def _kandinsky6_sr() -> nn.Module:
    """Three blocks with sparse attention."""
    return diffusers.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=6,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_visual_blocks=3,
        axes_dims=(8, 4, 4),
        nabla_window=(1, 1, 1),
    )


def _kandinsky6_sr_inputs(rows: int) -> Inputs:
    """Channel-last latents with their condition."""
    return Inputs(hidden_states=torch.randn(rows, 2, 8, 8, 9), timestep=steps(rows))


SPECIMENS = (
    Specimen(
        "diffusers.Cosmos3OmniTransformer",
        _cosmos3,
        lambda rows: cosmos3_inputs(),
        batched=False,
        note="one packed sequence; the videos in it are a list",
    ),
    Specimen(
        "diffusers.JoyImageEditTransformer3DModel",
        _joy,
        _joy_inputs,
        note="several images a row",
    ),
    Specimen(
        "diffusers.JoyImageEditPlusTransformer3DModel",
        _joy_plus,
        _joy_plus_inputs,
        note="a list of image sizes for each row",
    ),
    Specimen(
        "diffusers.Kandinsky5Transformer3DModel",
        _kandinsky5,
        _kandinsky5_inputs,
        note="channel-last; positions are a list",
    ),
    Specimen(
        "diffusers.Kandinsky6Transformer3DModel",
        _kandinsky6,
        _kandinsky6_inputs,
        note="video and audio at once",
    ),
    Specimen(
        "diffusers.Kandinsky6SRTransformer3DModel",
        _kandinsky6_sr,
        _kandinsky6_sr_inputs,
        note="flex attention with masks that depend on the data",
    ),
)
