"""The carried head: plain reuse untrained, its formula, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from exitkit.heads import CarriedHead, CarriedState
from tests.heads.carried.states import PAIRS, state_of
from tests.heads.specs import TOKENS, E, hidden_of, shake


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untrained_carried_head_is_plain_reuse(pair, order, dtype):
    hidden, carried, relative = PAIRS[pair]
    h, state = hidden_of(hidden, dtype=dtype), state_of(hidden, carried, dtype=dtype)
    head = CarriedHead(hidden, carried, E, order=order, relative=relative).to(dtype)
    out = head(h, torch.randn(2, E), state=state)
    assert torch.equal(out, h + state.last.v if relative else state.last.v) and out.dtype == dtype
    shake(head)
    assert not torch.equal(head(h, torch.randn(2, E), state=state), out)  # negative control


def test_carried_head_equals_the_literal_concatenation():
    head = shake(CarriedHead(TOKENS, TOKENS, E, width=5).double())
    h, state = hidden_of(TOKENS, dtype=torch.float64), state_of(TOKENS, TOKENS, 2, torch.float64)
    embedding = torch.randn(2, E, dtype=torch.float64)
    gaps = torch.stack([state.gap1, state.gap2], 1).double()
    parts = [
        h - state.last.h,
        h,
        state.last.v,
        4 * (state.last.h - state.before.h),
        4 * (state.last.v - state.before.v),
    ]
    parts += [x[:, None].expand(-1, 18, -1) for x in (embedding, gaps)]
    layers = [head.change, head.state, head.value, head.past_change, head.past_value]
    layers += [head.timestep.linear, head.gaps.linear]
    weight = torch.cat([layer.weight for layer in layers], dim=1)
    inner = torch.cat(parts, -1) @ weight.T + head.state.bias
    correction = nn.functional.gelu(inner) @ head.last.weight.T + head.last.bias
    ratio = (gaps[:, 0] / gaps[:, 1]).clamp(max=8)[:, None, None]
    v_hat = state.last.v + head.slope * ratio * (state.last.v - state.before.v) + correction
    torch.testing.assert_close(head(h, embedding, state=state), h + v_hat, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_reach_every_parameter_of_the_carried_head(pair, order):
    hidden, carried, relative = PAIRS[pair]
    head = shake(CarriedHead(hidden, carried, E, order=order, relative=relative))
    out = head(hidden_of(hidden), torch.randn(2, E), state=state_of(hidden, carried))
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_one_full_step_so_far_is_a_second_order_state_without_change():
    head = shake(CarriedHead(TOKENS, TOKENS, E))
    h, state, embedding = hidden_of(TOKENS), state_of(TOKENS, TOKENS), torch.randn(2, E)
    first = CarriedState.between(state.timestep, state.last)
    assert first.before is first.last and not first.gap2.any()
    assert head(h, embedding, state=first).isfinite().all()
    # A vanishing second gap must not extrapolate to infinity.
    last, before = (
        replace(state.last, t=torch.zeros(2)),
        replace(state.before, t=torch.full((2,), 1e-27)),
    )
    near = CarriedState.between(torch.full((2,), 500.0), last, before)
    assert (near.gap2 > 0).all()
    assert head(h, embedding, state=near).abs().max() < 1e3
