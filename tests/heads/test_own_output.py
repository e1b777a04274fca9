"""Output heads of kind `output`."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ShapeError
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


@pytest.mark.parametrize("spec", ["tokens", "features", "vector"])
def test_rows_of_another_form_are_refused(spec):
    head = OwnOutputHead(SPECS[spec], IMAGE, IMAGE, 0)
    hidden = hidden_of(SPECS[spec])
    ragged = torch.randn(2, 90)  # rows of several sizes, flattened
    with pytest.raises(
        ShapeError, match=r"row of the noisy input .* \(90,\).*one call a size.*tail"
    ):
        head(hidden, None, ragged)
    more = torch.randn(2, IMAGE[0] + 1, *IMAGE[1:])
    with pytest.raises(ShapeError, match="row of the noisy input"):
        head(hidden, None, more)
    assert head(hidden, None, torch.randn(2, *IMAGE)).shape == (2, *IMAGE)


def test_sequences_of_another_length():
    packed = OwnOutputHead(HiddenSpec((9, 16), 1), (9, 8), (9, 8), 0)
    assert packed(torch.randn(2, 12, 16), None, torch.randn(2, 12, 8)).shape == (2, 12, 8)
    with pytest.raises(ShapeError, match="the head makes predictions of"):
        packed(torch.randn(2, 9, 16), None, torch.randn(2, 12, 8))
    series = OwnOutputHead(HiddenSpec((16, 5, 9), 0), (5, 9), (5, 9), 0)
    assert series(torch.randn(2, 16, 5, 7), None, torch.randn(2, 5, 7)).shape == (2, 5, 7)
    with pytest.raises(ShapeError, match="its channels are others"):
        series(torch.randn(2, 16, 6, 9), None, torch.randn(2, 6, 9))


def left_over(seed: int, identity: bool) -> float:
    """Share of the variance that a head on patches leaves of a map that it can learn exactly."""
    torch.manual_seed(seed)
    head = OwnOutputHead(HiddenSpec((16, 32), 1), (1, 16, 16), None, 0)
    if not identity:
        torch.nn.init.trunc_normal_(head.body.conv.weight, std=0.02)
    source = torch.Generator().manual_seed(seed + 999)
    wanted = torch.randn(32, 16, generator=source) / 32**0.5
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(80):
        hidden = torch.randn(16, 16, 32, generator=source)
        patches = torch.nn.functional.layer_norm(hidden, (32,)) @ wanted
        target = patches.view(16, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(16, 1, 16, 16)
        loss = (head(hidden) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach() / target.var())


def test_heads_on_patches_are_not_trapped_by_how_they_start():
    assert max(left_over(seed, identity=True) for seed in (8, 9)) < 0.02
    assert max(left_over(seed, identity=False) for seed in (8, 9)) > 0.05  # the control
