"""Audio transformers of diffusers, shrunk."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.drawing import unit
from tests.zoo.specimen import Specimen


def _ace_step() -> nn.Module:
    """Four layers, every other one with sliding attention."""
    return diffusers.AceStepTransformer1DModel(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        in_channels=18,
        audio_acoustic_hidden_dim=6,
        sliding_window=3,
        encoder_hidden_size=12,
    )


def _ace_step_inputs(rows: int) -> Inputs:
    """Latents of sound, their context and text; both timesteps are in 0..1."""
    t = unit(rows)
    return Inputs(
        hidden_states=torch.randn(rows, 16, 6),
        timestep=t,
        timestep_r=t.clone(),
        encoder_hidden_states=torch.randn(rows, 5, 12),
        context_latents=torch.randn(rows, 16, 12),
    )


SPECIMENS = (
    Specimen(
        "diffusers.AceStepTransformer1DModel",
        _ace_step,
        _ace_step_inputs,
        note="two timesteps; sequences of sound",
    ),
)
