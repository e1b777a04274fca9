"""Output heads of kind `output`."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import OwnOutputHead
from exitkit.surgery.spec import HiddenSpec
from tests.heads.specs import IMAGE, SPECS, E, hidden_of

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
