"""Uncertainty heads: where they start, their formula, their maps."""

from __future__ import annotations

import itertools

import pytest
import torch

from exitkit.errors import ConfigError, ShapeError
from exitkit.heads import UncertaintyHead, reduce
from tests.heads.specs import IMAGE, SPECS, TOKENS, E, hidden_of, shake

SHAPES = [
    ("tokens", "map", IMAGE, IMAGE),
    ("features", "map", IMAGE, IMAGE),
    ("features", "map", (3, 6, 6), (3, 6, 6)),
    ("features", "map", (3, 2, 2), (3, 2, 2)),
    ("last", "map", IMAGE, IMAGE),
    ("folded", "map", IMAGE, (3 * 4 * 4,)),
    ("folded", "map", (3, 3, 8, 8), (3, 3, 8, 8)),
    ("vector", "map", IMAGE, ()),
    ("tokens", "map", (10,), ()),
    ("features", "map", (10,), ()),
    ("tokens", "scalar", IMAGE, ()),
    ("features", "scalar", IMAGE, ()),
]


@pytest.mark.parametrize(("name", "kind", "output", "shape"), SHAPES)
def test_a_new_head_is_half_sure_of_everything_and_says_that_it_is_new(name, kind, output, shape):
    head = UncertaintyHead(SPECS[name], output, E, kind)
    u = head(100 * hidden_of(SPECS[name]), torch.randn(2, E))
    assert u.shape == (2, *shape) and torch.equal(u, torch.full_like(u, 0.5))
    assert not head.is_fitted


@pytest.mark.parametrize(("name", "kind", "output", "shape"), SHAPES)
def test_uncertainty_lies_in_the_unit_interval_and_gradients_reach_everything(
    name, kind, output, shape
):
    head = shake(UncertaintyHead(SPECS[name], output, E, kind))
    u = head(3 * hidden_of(SPECS[name]), torch.randn(2, E))
    assert u.shape == (2, *shape) and 0 <= u.min() and u.max() <= 1
    assert u.std() > 1e-4
    (u - 0.3).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("name", ["tokens", "features", "last", "folded", "vector"])
def test_split_weights_equal_the_concatenation(name):
    spec = SPECS[name]
    head = shake(UncertaintyHead(spec, (2, 2, 2, 2, 2), E).double())
    h, embedding = hidden_of(spec, dtype=torch.float64), torch.randn(2, E, dtype=torch.float64)
    last = h.movedim(spec.channel_axis + 1, -1).reshape(2, -1, spec.channels)
    both = torch.cat([last, embedding[:, None].expand(-1, last.shape[1], -1)], dim=-1)
    weight = torch.cat([head.linear.weight, head.timestep.linear.weight], dim=1)
    literal = (both @ weight.T + head.linear.bias).sigmoid().flatten(1)
    out = head(h, embedding).reshape(2, -1)
    torch.testing.assert_close(out, literal, atol=1e-6, rtol=0)
    # Negative control: the timestep's columns are part of the sum.
    assert not torch.allclose(head(h, embedding + 1).reshape(2, -1), literal, atol=1e-6)


def test_scalar_is_the_sigmoid_of_the_mean_logit():
    head = shake(UncertaintyHead(TOKENS, IMAGE, 0, "scalar").double())
    h = hidden_of(TOKENS, dtype=torch.float64)
    literal = (h @ head.linear.weight.T + head.linear.bias).mean(dim=(1, 2)).sigmoid()
    torch.testing.assert_close(head(h), literal)


def test_map_drops_leading_tokens_and_keeps_the_order():
    head = UncertaintyHead(TOKENS, IMAGE, 0).double()
    shake(head)
    h = hidden_of(TOKENS, dtype=torch.float64)
    u = head(h)
    naive = torch.empty(2, *IMAGE, dtype=torch.float64)
    for row, column, a, b, c in itertools.product(range(4), range(4), range(2), range(2), range(3)):
        index = (a * 2 + b) * 3 + c
        logit = h[:, 2 + row * 4 + column] @ head.linear.weight[index] + head.linear.bias[index]
        naive[:, c, row * 2 + a, column * 2 + b] = logit.sigmoid()
    torch.testing.assert_close(u, naive, atol=1e-12, rtol=0)
    # Negative control: the leading tokens are really dropped, the patches really used.
    changed = h.clone()
    changed[:, :2] += 1.0
    assert torch.equal(head(changed), u)
    changed[:, 2] += 1.0
    assert not torch.equal(head(changed)[:, :, :2, :2], u[:, :, :2, :2])
    assert torch.equal(head(changed)[:, :, 2:, :], u[:, :, 2:, :])


def test_tokens_in_front_may_be_more_or_fewer_than_in_the_example():
    h, embedding = hidden_of(TOKENS), torch.randn(2, E)
    head = shake(UncertaintyHead(TOKENS, IMAGE, E))
    longer = torch.cat([torch.randn(2, 5, 8), h], dim=1)
    assert torch.equal(head(longer, embedding), head(h, embedding))
    assert not torch.equal(head(torch.cat([h, h[:, :5]], dim=1), embedding), head(h, embedding))


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_reductions_equal_the_naive_ones(q):
    u = torch.rand(3, 2, 5, 7, dtype=torch.float64)
    flat = u.reshape(3, -1)
    torch.testing.assert_close(reduce(u), flat.sum(1) / 70)
    torch.testing.assert_close(reduce(u, "max"), torch.stack([row.max() for row in flat]))
    torch.testing.assert_close(reduce(u, "quantile", q), torch.quantile(flat, q, dim=1))
    assert torch.equal(reduce(flat[:, 0], "max"), flat[:, 0])


def test_reduce_refuses():
    u = torch.rand(2, 3)
    with pytest.raises(ConfigError, match=r"no reduction 'men'.*Did you mean 'mean'"):
        reduce(u, "men")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got q=1.5"):
        reduce(u, "quantile", 1.5)
    with pytest.raises(ShapeError, match=r"u\[None\]"):
        reduce(torch.tensor(0.5))
