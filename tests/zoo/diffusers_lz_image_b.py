"""Image transformers of diffusers, L to Z: single stream and cross attention."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def lumina2() -> nn.Module:
    """Two refiners and a joint stream."""
    return d.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16),
        cap_feat_dim=24,
    )


def lumina2_inputs(rows: int) -> Inputs:
    """Captions without padding."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_attention_mask=torch.ones(rows, 5, dtype=torch.bool),
    )


def lumina2_padded_inputs(rows: int) -> Inputs:
    """Captions of different lengths, padded behind."""
    inputs = lumina2_inputs(rows)
    lengths = 3 + torch.arange(rows) % 3
    inputs.kwargs["encoder_attention_mask"] = torch.arange(5)[None] < lengths[:, None]
    return inputs


def lumina_next() -> nn.Module:
    """Cross attention into the caption."""
    model = d.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=24,
    )
    nn.init.normal_(model.pad_token)  # not initialised by the class
    return model


def lumina_next_inputs(rows: int) -> Inputs:
    """The rotary table is a shared argument."""
    angles = torch.arange(36).view(6, 6, 1) * torch.linspace(0.1, 1.0, 4)
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_mask=torch.ones(rows, 5, dtype=torch.long),
        image_rotary_emb=torch.polar(torch.ones(6, 6, 4), angles),
        cross_attention_kwargs={},
    )


def nucleus_moe() -> nn.Module:
    """Mixtures of experts between dense blocks."""
    model = d.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 2, 2),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    for parameter in model.parameters():
        if parameter.ndim == 3:  # the experts are not initialised by the class
            nn.init.normal_(parameter, std=0.2)
    return model


def nucleus_moe_inputs(rows: int) -> Inputs:
    """Packed latents of a 4x4 grid."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 16),
        img_shapes=[(1, 4, 4)] * rows,
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_hidden_states_mask=torch.ones(rows, 5, dtype=torch.bool),
        timestep=torch.rand(rows),
    )


def omnigen() -> nn.Module:
    """Text, timestep and image tokens in one stream."""
    return d.OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=48,
        num_layers=3,
        pad_token_id=0,
        vocab_size=40,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=8,
        time_step_dim=16,
    )


def omnigen_inputs(rows: int) -> Inputs:
    """A prompt of five tokens without input images."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=torch.rand(rows),
        input_ids=torch.randint(1, 40, (rows, 5)),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(rows, 22, 22),
        position_ids=torch.arange(22).repeat(rows, 1),
    )


def prx() -> nn.Module:
    """Attends to its text without updating it."""
    return d.PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=24,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=4,
        depth=3,
        axes_dim=[4, 4],
    )


def prx_inputs(rows: int) -> Inputs:
    """With a text mask, as its pipeline passes it."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        attention_mask=torch.ones(rows, 5, dtype=torch.bool),
    )


def pixart(additional: bool) -> nn.Module:
    """One table of modulations for all blocks."""
    return d.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=48,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        caption_channels=24,
        use_additional_conditions=additional,
    )


def pixart_inputs(rows: int) -> Inputs:
    """Without sizes, as PixArt-Sigma is called."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        encoder_attention_mask=torch.ones(rows, 5),
    )


def pixart_alpha_inputs(rows: int) -> Inputs:
    """With sizes, as PixArt-Alpha at 1024 is called."""
    inputs = pixart_inputs(rows)
    inputs.kwargs["added_cond_kwargs"] = {
        "resolution": torch.rand(rows, 2) * 512 + 512,
        "aspect_ratio": torch.rand(rows, 1) + 0.5,
    }
    return inputs


def sana(guidance_embeds: bool = False, qk_norm: str | None = None) -> nn.Module:
    """Linear attention and convolutional feed-forward."""
    return d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        patch_size=1,
        guidance_embeds=guidance_embeds,
        qk_norm=qk_norm,
    )


def sana_inputs(rows: int) -> Inputs:
    """Masked text."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        encoder_attention_mask=torch.ones(rows, 5),
    )


def sana_guided_inputs(rows: int) -> Inputs:
    """Guidance for every row, as the distilled Sana-Sprint is called."""
    inputs = sana_inputs(rows)
    inputs.kwargs["timestep"] = torch.rand(rows)
    inputs.kwargs["guidance"] = torch.rand(rows)
    return inputs


def _specimen(name: str, *parts: object, note: str = "") -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("Lumina2Transformer2DModel", lumina2, lumina2_inputs),
    _specimen(
        "Lumina2Transformer2DModel.padded",
        lumina2,
        lumina2_padded_inputs,
        note="captions of different lengths in one batch; builds a mask only where they differ",
    ),
    _specimen("LuminaNextDiT2DModel", lumina_next, lumina_next_inputs),
    _specimen("NucleusMoEImageTransformer2DModel", nucleus_moe, nucleus_moe_inputs),
    _specimen("OmniGenTransformer2DModel", omnigen, omnigen_inputs),
    _specimen("PRXTransformer2DModel", prx, prx_inputs),
    _specimen("PixArtTransformer2DModel", lambda: pixart(False), pixart_inputs),
    _specimen("PixArtTransformer2DModel.alpha", lambda: pixart(True), pixart_alpha_inputs),
    _specimen("SanaTransformer2DModel", sana, sana_inputs),
    _specimen(
        "SanaTransformer2DModel.guided",
        lambda: sana(True, "rms_norm_across_heads"),
        sana_guided_inputs,
    ),
)
