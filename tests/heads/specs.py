"""Layouts of hidden states that heads are tested on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exitkit.surgery.spec import HiddenSpec

E = 6
TOKENS = HiddenSpec((18, 8), 1)  # 16 patches after 2 leading tokens
FEATURES = HiddenSpec((8, 4, 4), 0)
SWIN = HiddenSpec((4, 4, 8), 2)
VECTOR = HiddenSpec((8,), 0)
FOLDED = HiddenSpec((3, 8, 4, 4), 1)
LATE = HiddenSpec((16, 2, 2), 0)
SPECS = {"tokens": TOKENS, "features": FEATURES, "last": SWIN, "vector": VECTOR, "folded": FOLDED}
IMAGE = (3, 8, 8)


def hidden_of(spec: HiddenSpec, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, *spec.shape).to(dtype)


def shake(module: nn.Module) -> nn.Module:
    """Replaces every parameter by noise: zeros would hide what they multiply."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module
