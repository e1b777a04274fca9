"""Linear maps along time."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError
from tests.heads.carried.states import PAIRS, at, mapped, state_of
from tests.heads.specs import TOKENS, hidden_of


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unsolved_maps_are_plain_reuse(pair, order, dtype):
    hidden, carried, relative = PAIRS[pair]
    h, state = hidden_of(hidden, dtype=dtype), state_of(hidden, carried, dtype=dtype)
    head = mapped(hidden, carried, relative, order).to(dtype)
    out = head(h, torch.zeros(2, 8), state=at(state, torch.tensor([10.0, 500.0])))
    assert torch.equal(out, h + state.last.v if relative else state.last.v) and out.dtype == dtype
    assert not list(head.parameters())


def naive_change(head, index, h, state):
    """The formula of time_maps.py, literally, for tokens."""
    g, ratio = (state.gap1 / 0.02)[:, None, None], (state.gap1 / state.gap2).clamp(max=8)
    ratio = ratio[:, None, None]
    x = [h - state.last.h, g * h, g * state.last.v, ratio * (state.last.h - state.before.h)]
    x = torch.cat([*x, ratio * (state.last.v - state.before.v)], -1)
    maps = head.maps
    return x @ maps.down[index] @ maps.up[index] + g * maps.offset[index]


def test_maps_equal_the_formula_at_knots_between_and_beyond_them():
    head = mapped(TOKENS, TOKENS, False).double()
    head.maps.place([100.0, 0.0, 300.0])
    for buffer in (head.maps.down, head.maps.up, head.maps.offset):
        buffer.normal_()
    h, state = hidden_of(TOKENS, dtype=torch.float64), state_of(TOKENS, TOKENS, 2, torch.float64)
    naive = [state.last.v + naive_change(head, i, h, state) for i in range(3)]
    expected = {0.0: naive[0], 100.0: naive[1], 999.0: naive[2], 150.0: None}
    expected[150.0] = 0.75 * naive[1] + 0.25 * naive[2]
    embedding = torch.zeros(2, 8)
    for t, want in expected.items():
        out = head(h, embedding, state=at(state, t))
        torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-5)
    mixed = head(h, embedding, state=at(state, torch.tensor([150.0, 0.0])))
    want = torch.stack([expected[150.0][0], naive[0][1]])
    torch.testing.assert_close(mixed, want, atol=1e-4, rtol=1e-5)
    # Negative control: knots differ.
    assert not torch.allclose(naive[0], naive[1], atol=0.1)


def test_maps_survive_saving_and_half_precision():
    head = mapped(TOKENS, TOKENS, True)
    head.maps.place([981.0, 1.5])
    head.maps.down.normal_()
    other = mapped(TOKENS, TOKENS, True)
    other.load_state_dict(head.state_dict())
    assert other.maps.knots == [1.5, 981.0] and torch.equal(other.maps.down, head.maps.down)
    assert other.bfloat16().maps.knots == [1.5, 981.0]


def test_times_below_zero_are_knots_like_others():
    """Some backbones are fed logarithms of the noise level."""
    head = mapped(TOKENS, TOKENS, True)
    assert head.maps.place([-1.5, 1.0, -0.001]) == [-1.5, 0.0, 1.0]
    assert head.maps.weights(-2.0) == [(0, 1.0)] and head.maps.weights(1.0) == [(2, 1.0)]
    head.maps.place([3.0])
    assert head.maps.knots == [3.0]
    with pytest.raises(ConfigError, match="at least one timestep"):
        head.maps.place([])
