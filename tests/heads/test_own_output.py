"""Output heads of kind `output`."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import OwnOutputHead
from exitkit.surgery.spec import HiddenSpec
from tests.heads.specs import FEATURES, IMAGE, SPECS, TOKENS, E, hidden_of, shake

CASES = [
    ("tokens", IMAGE, None),
    ("tokens", (10,), None),
    ("features", IMAGE, IMAGE),
    ("features", IMAGE, None),
    ("features", (6, 9, 5), (3, 9, 5)),
    ("features", (10,), None),
    ("last", IMAGE, IMAGE),
    ("folded", (3, 3, 8, 8), (3, 3, 8, 8)),
    ("vector", (10,), None),
    ("vector", IMAGE, IMAGE),
]


@pytest.mark.parametrize(("name", "output", "noisy"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_heads_have_the_outputs_shape(name, output, noisy, dtype):
    head = OwnOutputHead(SPECS[name], output, noisy, E).to(dtype)
    x = None if noisy is None else torch.randn(2, *noisy).to(dtype)
    out = head(hidden_of(SPECS[name], dtype=dtype), torch.randn(2, E), x)
    assert out.shape == (2, *output) and out.dtype == dtype
    assert out.isfinite().all() and out.abs().max() < 10
    (out.float() - 0.1).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("shape", [(24, 8), (17, 8)])
def test_heads_on_packed_latents_and_sequences(shape):
    output = (16, 64) if shape[0] == 24 else (2, 64)
    out = OwnOutputHead(HiddenSpec(shape, 1), output, None, 0)(torch.randn(2, *shape))
    assert out.shape == (2, *output) and out.isfinite().all()


def test_features_see_the_noisy_input_and_patches_the_hidden_state():
    head, h = OwnOutputHead(FEATURES, IMAGE, IMAGE, 0), hidden_of(FEATURES)
    x = torch.randn(2, *IMAGE)
    assert not torch.equal(head(h, None, x), head(h, None, x + 1))
    patches, tokens = OwnOutputHead(TOKENS, IMAGE, IMAGE, 0), hidden_of(TOKENS)
    assert torch.equal(patches(tokens, None, x), patches(tokens, None, x + 1))
    assert not torch.equal(patches(tokens), patches(hidden_of(TOKENS)))


def test_without_a_place_the_head_scales_the_noisy_input():
    output = (3, 4, 8, 8)
    head = shake(OwnOutputHead(TOKENS, output, output, E))
    h, embedding, noisy = hidden_of(TOKENS), torch.randn(2, E), torch.randn(2, *output)
    out = head(h, embedding, noisy)
    gain = head(h, embedding, noisy + 1) - out
    assert out.shape == (2, *output)
    assert torch.allclose(gain, gain[:, :1, :1, :1, :1].expand_as(gain), atol=1e-5)
    assert not torch.allclose(gain[0], gain[1])
    mean = out - gain * noisy
    assert torch.allclose(mean, mean[:, :, :1, :1, :1].expand_as(mean), atol=1e-5)
