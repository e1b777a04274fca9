"""What layers on channels promise to all heads: rows apart, dtypes, refusals."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError, ShapeError
from exitkit.heads import CarriedHead, OwnOutputHead, TailHead, UncertaintyHead
from tests.heads.carried.states import state_of
from tests.heads.specs import FEATURES, IMAGE, LATE, TOKENS, E, hidden_of, shake


def test_heads_do_not_mix_rows():
    h, embedding, x = hidden_of(FEATURES, 5), torch.randn(5, E), torch.randn(5, *IMAGE)
    attached = shake(OwnOutputHead(FEATURES, IMAGE, IMAGE, E)).double()
    uncertainty = shake(UncertaintyHead(FEATURES, IMAGE, E)).double()
    order = torch.tensor([3, 0, 4])
    h, embedding, x = h.double(), embedding.double(), x.double()
    some = attached(h[order], embedding[order], x[order])
    torch.testing.assert_close(some, attached(h, embedding, x)[order], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        uncertainty(h[order], embedding[order]), uncertainty(h, embedding)[order]
    )


def test_half_precision_hidden_states_meet_full_precision_heads():
    h, embedding = hidden_of(TOKENS, dtype=torch.bfloat16), torch.randn(2, E)
    u = shake(UncertaintyHead(TOKENS, IMAGE, E))(h, embedding)
    assert u.dtype == torch.float32
    assert shake(OwnOutputHead(TOKENS, IMAGE, None, E))(h, embedding).dtype == torch.bfloat16
    assert UncertaintyHead(TOKENS, IMAGE, E).bfloat16()(h, embedding).dtype == torch.float32
    assert UncertaintyHead(TOKENS, IMAGE, 0).double()(h.double()).dtype == torch.float64


def test_wrong_shapes_are_refused_with_a_way_out():
    h, embedding = hidden_of(TOKENS), torch.randn(2, E)
    for head in (UncertaintyHead(TOKENS, IMAGE, E), TailHead(TOKENS, E)):
        with pytest.raises(
            ShapeError, match=r"expected a hidden state \(B, 18, 8\).*got \(2, 18, 7"
        ):
            head(h[..., 1:], embedding)
        with pytest.raises(ShapeError, match=r"embedding \(2, 6\), got None\. Pass TimestepEmbedd"):
            head(h, None)
    with pytest.raises(ShapeError, match=r"15 tokens .* do not tile an output of size \(8, 8\)"):
        UncertaintyHead(TOKENS, IMAGE, E)(h[:, 3:], embedding)
    with pytest.raises(ShapeError, match=r"embedding \(2, 6\), got \(3, 6\)"):
        OwnOutputHead(TOKENS, IMAGE, None, E)(h, torch.randn(3, E))
    with pytest.raises(ShapeError, match=r"noisy input.*Pass noisy=x_t"):
        OwnOutputHead(FEATURES, IMAGE, IMAGE, 0)(hidden_of(FEATURES))
    with pytest.raises(ShapeError, match=r"Build the head with relative=False"):
        CarriedHead(FEATURES, LATE, E)
    with pytest.raises(ConfigError, match=r"order must be 1 or 2, got 3"):
        CarriedHead(TOKENS, TOKENS, E, order=3)
    carried = CarriedHead(FEATURES, LATE, 0, relative=False)
    bad = state_of(FEATURES, FEATURES)
    with pytest.raises(ShapeError, match=r"CarriedHead: expected a hidden state \(B, 16, 2, 2\)"):
        carried(hidden_of(FEATURES), state=bad)
