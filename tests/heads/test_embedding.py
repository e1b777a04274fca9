"""The timestep embedding."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ShapeError
from exitkit.heads import TimestepEmbedding


def test_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 12.5, 999.0], dtype=torch.float64)
    out = TimestepEmbedding(4)(t)
    naive = [[(t[b] * 10_000 ** (-2 * j / 4)).item() for j in range(2)] for b in range(3)]
    angles = torch.tensor(naive, dtype=torch.float64)
    torch.testing.assert_close(out, torch.cat([angles.cos(), angles.sin()], 1), atol=1e-5, rtol=0)
    assert TimestepEmbedding(0)(t).shape == (3, 0)
    assert TimestepEmbedding(4)(t.to(torch.bfloat16)).dtype == torch.float32
    assert not list(TimestepEmbedding(4).parameters())


def test_embedding_refuses():
    with pytest.raises(ShapeError, match=r"even width, got dim=3.*embedding_dim=4"):
        TimestepEmbedding(3)
    with pytest.raises(ShapeError, match=r"expected timesteps \(B,\).*t\.expand\(B\)"):
        TimestepEmbedding(4)(torch.zeros(2, 1))
