"""The hidden states at our boundaries are the features that timm itself hands out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import exitkit as ek

timm = pytest.importorskip("timm")

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "deit3_small_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3},
    "resnet10t": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24},
    "mobilenetv3_small_050": {},
    "efficientnet_lite0": {},
    "regnetx_002": {},
    "mixer_s32_224": {},
}


def views(state: Tensor) -> list[Tensor]:
    """A hidden state as (B, N, C) without class and register tokens, and channels first or last."""
    if state.ndim == 3:
        return [state]
    return [state, state.permute(0, 3, 1, 2), state.permute(0, 2, 3, 1)]


def same(feature: Tensor, state: Tensor) -> bool:
    for view in views(state):
        if view.ndim == 3 and feature.ndim == 4:
            tokens = feature.flatten(2).transpose(1, 2)
            extra = view.shape[1] - tokens.shape[1]
            if extra >= 0 and view.shape[2] == tokens.shape[2]:
                if torch.allclose(view[:, extra:], tokens, atol=1e-5):
                    return True
        elif view.shape == feature.shape and torch.allclose(view, feature, atol=1e-5):
            return True
    return False


LATE = ("deit3_small_patch16_224", "efficientnet_lite0", "regnetx_002", "mixer_s32_224")
"""A further ViT and further CNNs, and one that takes large images only: with the slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LATE)) for n in MODELS]
)
def test_boundaries_hold_the_features_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10, **MODELS[name]).eval()
    side = MODELS[name].get("img_size", 64 if "mixer" not in name else 224)
    images = torch.randn(2, 3, side, side)
    options = {"norm": False, "intermediates_only": True}
    with torch.no_grad():
        features = model.forward_intermediates(images, **options)
        wrapped = ek.wrap(model, example_inputs=(images,))
        kept = list(wrapped.record(images).hidden.values())
    ek.unwrap(wrapped)
    found = [any(same(feature, state) for state in kept) for feature in features]
    # Features before the first block (a stem) and behind the last (which is no exit) have none.
    inner = found[:-1] if found[0] else found[1:-1]
    assert inner and all(inner), found
    wrong = [feature + 0.1 for feature in features]
    assert not any(same(feature, state) for feature in wrong for state in kept)
