"""Image transformers of diffusers, L to Z: two streams, tokens of any modality, and priors."""

from __future__ import annotations

import diffusers as d
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen


def longcat() -> nn.Module:
    """Dual then single stream, in the manner of Flux."""
    return d.LongCatImageTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=[2, 2, 4],
    )


def ovis() -> nn.Module:
    """Dual then single stream, in the manner of Flux."""
    return d.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(2, 2, 4),
    )


def flux_like_inputs(rows: int) -> Inputs:
    """Packed latents of a 4x4 grid; positions are shared by all rows."""
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), dim=-1)
    img_ids = torch.cat([torch.zeros(16, 1), grid.view(16, 2)], dim=1).float()
    return Inputs(
        hidden_states=torch.randn(rows, 16, 16),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.rand(rows),
        img_ids=img_ids,
        txt_ids=torch.zeros(5, 3),
    )


def qwen(**options: bool) -> nn.Module:
    """Dual stream throughout."""
    return d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(4, 2, 2),
        **options,
    )


def qwen_inputs(rows: int) -> Inputs:
    """A list of shapes for every row."""
    return Inputs(
        hidden_states=torch.randn(rows, 16, 16),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        encoder_hidden_states_mask=torch.ones(rows, 5, dtype=torch.long),
        timestep=torch.rand(rows),
        img_shapes=[[(1, 4, 4)]] * rows,
    )


def qwen_edit_inputs(rows: int) -> Inputs:
    """The target and a reference image behind it in one sequence."""
    inputs = qwen_inputs(rows)
    inputs.kwargs["hidden_states"] = torch.randn(rows, 20, 16)
    inputs.kwargs["img_shapes"] = [[(1, 4, 4), (1, 2, 2)]] * rows
    return inputs


def qwen21() -> nn.Module:
    """Text, condition images and target in one causal sequence."""
    return d.QwenImage21Transformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        context_in_dim=24,
        mlp_ratio=2,
        axes_dims_rope=(4, 2, 2),
    )


def qwen21_inputs(rows: int) -> Inputs:
    """Five words, then the target of a 4x4 grid in slots of four tokens."""
    mask = torch.cat([torch.zeros(rows, 5), torch.ones(rows, 4)], dim=1).bool()
    return Inputs(
        hidden_states=torch.randn(rows, 16, 16),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        timestep=torch.rand(rows),
        img_shapes=[[(1, 4, 4)]] * rows,
        img_mask=mask,
        encoder_hidden_states_mask=torch.ones(rows, 5, dtype=torch.long),
    )


def sd3(dual_attention_layers: tuple[int, ...] = (), qk_norm: str | None = None) -> nn.Module:
    """Dual stream; the last block leaves the text as it is."""
    return d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=dual_attention_layers,
        qk_norm=qk_norm,
    )


def sd3_inputs(rows: int) -> Inputs:
    """Pooled and full text."""
    return Inputs(
        hidden_states=torch.randn(rows, 4, 8, 8),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        pooled_projections=torch.randn(rows, 16),
        timestep=torch.rand(rows) * 999 + 1,
    )


def prior() -> nn.Module:
    """The unCLIP prior: an image embedding is the noisy input."""
    return d.PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        embedding_dim=24,
        num_embeddings=5,
        additional_embeddings=4,
    )


def prior_inputs(rows: int) -> Inputs:
    """An embedding, its text, and a mask with a causal bias."""
    return Inputs(
        hidden_states=torch.randn(rows, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        proj_embedding=torch.randn(rows, 24),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        attention_mask=torch.ones(rows, 5, dtype=torch.bool),
    )


def shap_e_prior() -> nn.Module:
    """The prior of Shap-E: a sequence of latents, no text."""
    return d.PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        embedding_dim=24,
        num_embeddings=6,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        embedding_proj_norm_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        time_embed_dim=64,
        embedding_proj_dim=16,
        clip_embed_dim=48,
    )


def shap_e_prior_inputs(rows: int) -> Inputs:
    """Six latents for every row."""
    return Inputs(
        hidden_states=torch.randn(rows, 6, 24),
        timestep=torch.randint(1, 1000, (rows,)),
        proj_embedding=torch.randn(rows, 16),
    )


def uvit() -> nn.Module:
    """aMUSEd: codes in, logits over codes out; convolutional ends around a transformer."""
    return d.UVit2DModel(
        hidden_size=32,
        cond_embed_dim=16,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=24,
        vocab_size=40,
        codebook_size=32,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=2,
        block_num_heads=4,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        sample_size=8,
    )


def uvit_inputs(rows: int) -> Inputs:
    """Codes are integers, so there is no continuous noisy input."""
    return Inputs(
        input_ids=torch.randint(0, 32, (rows, 8, 8)),
        encoder_hidden_states=torch.randn(rows, 5, 24),
        pooled_text_emb=torch.randn(rows, 16),
        micro_conds=torch.rand(rows, 5) * 512,
    )


def _specimen(name: str, *parts: object, note: str = "") -> Specimen:
    return Specimen(f"diffusers.{name}", *parts, note=note)  # type: ignore[arg-type]


SPECIMENS = (
    _specimen("LongCatImageTransformer2DModel", longcat, flux_like_inputs),
    _specimen("OvisImageTransformer2DModel", ovis, flux_like_inputs),
    _specimen("QwenImageTransformer2DModel", qwen, qwen_inputs),
    _specimen(
        "QwenImageTransformer2DModel.edit",
        lambda: qwen(zero_cond_t=True),
        qwen_edit_inputs,
        note="doubles the timestep along the batch axis: one for the target, one for references",
    ),
    _specimen(
        "QwenImage21Transformer2DModel",
        qwen21,
        qwen21_inputs,
        note="one timestep more than rows: the last is 0, for text and condition images",
    ),
    _specimen("SD3Transformer2DModel", sd3, sd3_inputs),
    _specimen("SD3Transformer2DModel.dual", lambda: sd3((0, 1), "rms_norm"), sd3_inputs),
    _specimen("PriorTransformer", prior, prior_inputs),
    _specimen("PriorTransformer.sequence", shap_e_prior, shap_e_prior_inputs),
    _specimen(
        "UVit2DModel",
        uvit,
        uvit_inputs,
        note="a masked model over codes: integer input, no timestep",
    ),
)
