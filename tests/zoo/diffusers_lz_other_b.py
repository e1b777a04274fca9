"""Audio, protein and list-based models of diffusers, L to Z, and transformers that UNets use."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def longcat_audio() -> nn.Module:
    """One modulation for all blocks, and a skip from the first to the last."""
    return d.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=3, dit_heads=4, dit_text_dim=24, latent_dim=8, ff_mult=2.0
    )


def longcat_audio_inputs(rows: int) -> Inputs:
    """Audio latents and a latent condition."""
    return Inputs(
        hidden_states=torch.randn(rows, 12, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_attention_mask=torch.ones(rows, 5, dtype=torch.bool),
        timestep=torch.rand(rows),
        attention_mask=torch.ones(rows, 12, dtype=torch.bool),
        latent_cond=torch.randn(rows, 12, 8),
    )


def minimax_music() -> nn.Module:
    """The timestep is a token in front."""
    return d.MiniMaxMusic3Transformer1DModel(
        in_channels=8,
        condition_dim=16,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=8,
        ff_inner_dim=48,
        rotary_dim=4,
        fourier_embedding_dim=16,
    )


def minimax_music_inputs(rows: int) -> Inputs:
    """Channels in front of time."""
    return Inputs(
        hidden_states=torch.randn(rows, 8, 12),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 12, 16),
    )


def stable_audio() -> nn.Module:
    """A global token in front, and shared keys in cross attention."""
    return d.StableAudioDiTModel(
        sample_size=12,
        in_channels=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=8,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=12,
        cross_attention_input_dim=16,
    )


def stable_audio_inputs(rows: int) -> Inputs:
    """The rotary table is a shared argument."""
    angles = torch.arange(13)[:, None] * torch.linspace(0.1, 1.0, 4)
    return Inputs(
        hidden_states=torch.randn(rows, 8, 12),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 5, 16),
        global_hidden_states=torch.randn(rows, 1, 12),
        rotary_embedding=(angles.cos(), angles.sin()),
    )


def stable_audio3() -> nn.Module:
    """Differential attention and memory tokens."""
    return d.StableAudio3DiTModel(
        io_channels=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        cond_token_dim=24,
        global_cond_dim=24,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        ff_mult=2.0,
        num_memory_tokens=4,
    )


def stable_audio3_inputs(rows: int) -> Inputs:
    """Inpainting: a local condition for every latent."""
    return Inputs(
        hidden_states=torch.randn(rows, 8, 12),
        timestep=torch.rand(rows),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        global_hidden_states=torch.randn(rows, 24),
        encoder_attention_mask=torch.ones(rows, 5),
        local_add_cond=torch.randn(rows, 5, 12),
    )


def t5_film() -> nn.Module:
    """The decoder of a spectrogram diffusion model."""
    return d.T5FilmDecoder(
        input_dims=8, targets_length=12, d_model=32, num_layers=3, num_heads=4, d_kv=8, d_ff=48
    )


def t5_film_inputs(rows: int) -> Inputs:
    """Encodings come in front of the noisy input, as a list of pairs."""
    return Inputs(
        encodings_and_masks=[
            (torch.randn(rows, 5, 32), torch.ones(rows, 5)),
            (torch.randn(rows, 12, 32), torch.ones(rows, 12)),
        ],
        decoder_input_tokens=torch.randn(rows, 12, 8),
        decoder_noise_time=torch.rand(rows),
    )


def transformer2d() -> nn.Module:
    """The transformer of Stable Diffusion's UNet by itself."""
    return d.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        num_layers=3,
        norm_num_groups=4,
        cross_attention_dim=24,
    )


def transformer2d_inputs(rows: int) -> Inputs:
    """Features and text; there is no timestep."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 4, 4), encoder_hidden_states=torch.randn(rows, 5, 24)
    )


def transformer2d_patches() -> nn.Module:
    """The old form of DiT."""
    return d.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def transformer2d_patches_inputs(rows: int) -> Inputs:
    """A latent and its class."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        timestep=torch.randint(1, 1000, (rows,)),
        class_labels=torch.randint(0, 10, (rows,)),
    )


def transformer_temporal() -> nn.Module:
    """Attends over frames; patches are folded into the batch."""
    return d.TransformerTemporalModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=3, norm_num_groups=4
    )


def transformer_temporal_inputs(rows: int) -> Inputs:
    """Three frames for every row, folded into the batch before the call."""
    return Inputs(hidden_states=torch.randn(rows * 3, 16, 2, 2), num_frames=3)


def zimage() -> nn.Module:
    """Two refiners, then text and image in one padded sequence."""
    return d.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=24,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
    )


def zimage_inputs(rows: int) -> Inputs:
    """One tensor for every row, in lists."""
    return Inputs(
        x=[torch.randn(4, 1, 8, 8) for _ in range(rows)],
        t=torch.rand(rows),
        cap_feats=[torch.randn(5 + row % 3, 24) for row in range(rows)],
    )


def proteina() -> nn.Module:
    """Tokens and pairs of tokens; pairs are updated between blocks."""
    return d.RFD4ProteinaTransformer(
        nlayers=4,
        token_dim=24,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=8,
        latent_dim=4,
        t_emb_dim=16,
        feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        tri_mult_c=8,
        num_sequence_classes=10,
    )


def proteina_inputs(rows: int) -> Inputs:
    """Two noisy inputs with a time each: atoms of the backbone, and latents."""
    return Inputs(
        bb_ca=torch.randn(rows, 6, 3),
        local_latents=torch.randn(rows, 6, 4),
        bb_ca_time=torch.rand(rows),
        local_latents_time=torch.rand(rows),
        padding_mask=torch.ones(rows, 6, dtype=torch.bool),
        conditioning={
            "is_in_context_conditioning": torch.zeros(rows, 6, dtype=torch.bool),
            "supports_local_latent": torch.ones(rows, 6, dtype=torch.bool),
        },
    )


def _specimen(name: str, *parts: object, note: str = "", batched: bool = True) -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, batched=batched, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("LongCatAudioDiTTransformer", longcat_audio, longcat_audio_inputs),
    _specimen("MiniMaxMusic3Transformer1DModel", minimax_music, minimax_music_inputs),
    _specimen("StableAudioDiTModel", stable_audio, stable_audio_inputs),
    _specimen("StableAudio3DiTModel", stable_audio3, stable_audio3_inputs),
    _specimen(
        "T5FilmDecoder",
        t5_film,
        t5_film_inputs,
        note="the condition comes before the noisy input; the time is called decoder_noise_time",
    ),
    _specimen("Transformer2DModel", transformer2d, transformer2d_inputs, note="no timestep"),
    _specimen("Transformer2DModel.patches", transformer2d_patches, transformer2d_patches_inputs),
    _specimen(
        "TransformerTemporalModel",
        transformer_temporal,
        transformer_temporal_inputs,
        note="a part of a UNet: its caller folds frames into the batch, so entries are not rows",
        batched=False,
    ),
    _specimen(
        "ZImageTransformer2DModel",
        zimage,
        zimage_inputs,
        note="a list with one tensor for every row, no batch axis outside",
        batched=False,
    ),
    _specimen(
        "RFD4ProteinaTransformer",
        proteina,
        proteina_inputs,
        note="two noisy inputs with times of their own",
    ),
)
