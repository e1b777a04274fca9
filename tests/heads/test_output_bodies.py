"""Layers from a hidden state to a prediction: which is taken, and what each looks at."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import OwnOutputHead
from exitkit.heads.output_bodies import Features, Patches, Pooled, Unplaced
from tests.heads.specs import (
    FEATURES,
    FOLDED,
    IMAGE,
    SWIN,
    TOKENS,
    VECTOR,
    E,
    hidden_of,
    shake,
)


@pytest.mark.parametrize(
    ("hidden", "output", "body"),
    [
        (TOKENS, IMAGE, Patches),
        (FEATURES, IMAGE, Features),
        (SWIN, IMAGE, Features),
        (VECTOR, IMAGE, Pooled),
        (TOKENS, (10,), Pooled),
        (FOLDED, IMAGE, Unplaced),
        (TOKENS, (3, 4, 8, 8), Unplaced),
    ],
)
def test_the_body_goes_by_where_positions_lie(hidden, output, body):
    assert type(OwnOutputHead(hidden, output, None, E).body) is body


def test_classes_are_a_linear_layer_over_the_mean_of_all_positions():
    body = shake(Pooled(FEATURES, (10,), E).double())
    h, embedding = hidden_of(FEATURES, dtype=torch.float64), torch.randn(2, E).double()
    mean = torch.stack([h[row].flatten(1).sum(1) / 16 for row in range(2)])
    normed = (mean - mean.mean(1, keepdim=True)) / (
        mean.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    normed = normed * body.norm.weight + body.norm.bias
    want = (
        normed @ body.linear.weight.T + body.linear.bias + embedding @ body.timestep.linear.weight.T
    )
    torch.testing.assert_close(body(h, embedding, None, None), want)


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
