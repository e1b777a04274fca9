"""Output heads of kind `tail`."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import TailHead
from tests.heads.specs import SPECS, TOKENS, E, hidden_of, shake


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_heads_start_at_the_identity(name, dtype):
    h, embedding = hidden_of(SPECS[name], dtype=dtype), torch.randn(2, E)
    for head in (TailHead(SPECS[name], E), TailHead(SPECS[name], E).to(dtype)):
        out = head(h, embedding)
        assert torch.equal(out, h) and out.dtype == dtype
        shake(head)
        assert not torch.equal(head(h, embedding), h)  # negative control


def test_the_formula():
    head = shake(TailHead(TOKENS, E).double())
    h, embedding = hidden_of(TOKENS, dtype=torch.float64), torch.randn(2, E, dtype=torch.float64)
    normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * head.norm.norm.weight + head.norm.norm.bias
    both = torch.cat([normed, embedding[:, None].expand(-1, 18, -1)], -1)
    weight = torch.cat([head.linear.weight, head.timestep.linear.weight], 1)
    torch.testing.assert_close(head(h, embedding), h + both @ weight.T + head.linear.bias)
