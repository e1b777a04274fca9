"""Heads: exact starting points, split weights, map layouts, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import CalibrationError, ConfigError, NonFiniteError, ShapeError
from exitkit.heads import (
    CarriedHead,
    CarriedState,
    FullStep,
    Grid,
    OwnOutputHead,
    SharedHead,
    TailHead,
    TimestepEmbedding,
    UncertaintyHead,
    Window,
    reduce,
    token_grid,
    unpatchify,
)
from exitkit.heads.carried.solve import solve
from exitkit.heads.grid import place, resize
from exitkit.surgery.spec import HiddenSpec

E = 6
TOKENS = HiddenSpec((18, 8), 1)  # 16 patches after 2 leading tokens
FEATURES = HiddenSpec((8, 4, 4), 0)
SWIN = HiddenSpec((4, 4, 8), 2)
VECTOR = HiddenSpec((8,), 0)
FOLDED = HiddenSpec((3, 8, 4, 4), 1)
SPECS = {"tokens": TOKENS, "features": FEATURES, "last": SWIN, "vector": VECTOR, "folded": FOLDED}
IMAGE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hidden_of(spec: HiddenSpec, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, *spec.shape).to(dtype)


def shake(module: nn.Module) -> nn.Module:
    """Replaces every parameter by noise: zeros would hide what they multiply."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def state_of(hidden: HiddenSpec, carried: HiddenSpec, rows: int = 2, dtype=torch.float32):
    def draw(spec):
        return hidden_of(spec, rows, dtype)

    now = torch.rand(rows) * 300
    t1, t2 = now + 300 * torch.rand(rows), now + 300 * (1 + torch.rand(rows))
    steps = [FullStep(draw(hidden), draw(carried), t) for t in (t1, t2)]
    return CarriedState.between(now, *steps)


# --- timestep embedding


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


# --- grids


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [
        (64, 32, 32, Grid(0, 4)),
        (66, 32, 32, Grid(2, 4)),
        (257, 16, 16, Grid(1, 1)),
        (6 * 4 + 1, 12, 8, Grid(1, 2)),
        (1, 32, 32, Grid(0, 32)),
        (3, 5, 3, None),
    ],
)
def test_token_grid_takes_the_fewest_extra_tokens(tokens, height, width, grid):
    assert token_grid(tokens, height, width) == grid


def test_unpatchify_equals_a_naive_loop():
    values = torch.randn(2, 2 * 3, 2 * 2 * 3)
    image = torch.empty(2, 3, 4, 6)
    for row, column, a, b, c in itertools.product(range(2), range(3), range(2), range(2), range(3)):
        vector = values[:, row * 3 + column]
        image[:, c, row * 2 + a, column * 2 + b] = vector[:, (a * 2 + b) * 3 + c]
    assert torch.equal(unpatchify(values, 4, 6, 2), image)


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


def test_places_for_sequences_packed_latents_and_finer_grids():
    packed = place(HiddenSpec((24, 8), 1), (16, 64))
    assert packed is not None and (packed.kind, packed.extra, packed.outputs) == ("packed", 8, 64)
    sequence = place(HiddenSpec((17, 8), 1), (2, 64))
    assert sequence is not None and (sequence.kind, sequence.extra) == ("patches", 1)
    values = torch.randn(1, 17, sequence.outputs)
    out = sequence.spread(values, 1)
    assert out.shape == (1, 2, 64) and out[0, 1, 4 * 5 + 3] == values[0, 1 + 5, 3 * 2 + 1]
    shuffled = place(FEATURES, IMAGE)
    assert shuffled is not None and (shuffled.patch, shuffled.outputs) == (2, 12)
    values = torch.randn(1, 12, 4, 4)
    assert shuffled.spread(values, 0)[0, 1, 2 * 3 + 1, 2 * 2] == values[0, 1 * 4 + 1 * 2, 3, 2]
    coarser = place(FEATURES, (3, 6, 6))
    assert coarser is not None and coarser.outputs == 3
    assert place(VECTOR, IMAGE) is None and place(TOKENS, (10,)) is None
    assert place(FOLDED, IMAGE) is None


def test_resize_averages_down_interpolates_up_and_keeps():
    x = torch.randn(1, 2, 4, 4)
    assert resize(x, (4, 4)) is x
    torch.testing.assert_close(resize(x, (2, 2))[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    assert resize(x, (6, 3)).shape == (1, 2, 6, 3)
    torch.testing.assert_close(resize(torch.ones(1, 1, 4), (7,)), torch.ones(1, 1, 7))


# --- uncertainty heads

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
def test_untrained_uncertainty_never_lets_a_row_leave(name, kind, output, shape):
    head = UncertaintyHead(SPECS[name], output, E, kind)
    u = head(100 * hidden_of(SPECS[name]), torch.randn(2, E))
    assert u.shape == (2, *shape)
    torch.testing.assert_close(u, torch.full_like(u, 0.998), atol=1e-5, rtol=0)


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


# --- output heads


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_translators_start_at_the_identity(name, dtype):
    h, embedding = hidden_of(SPECS[name], dtype=dtype), torch.randn(2, E)
    for head in (TailHead(SPECS[name], E), TailHead(SPECS[name], E).to(dtype)):
        out = head(h, embedding)
        assert torch.equal(out, h) and out.dtype == dtype
        shake(head)
        assert not torch.equal(head(h, embedding), h)  # negative control
    assert SharedHead()(h, embedding) is h and not list(SharedHead().parameters())


def test_translator_formula():
    head = shake(TailHead(TOKENS, E).double())
    h, embedding = hidden_of(TOKENS, dtype=torch.float64), torch.randn(2, E, dtype=torch.float64)
    normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * head.norm.norm.weight + head.norm.norm.bias
    both = torch.cat([normed, embedding[:, None].expand(-1, 18, -1)], -1)
    weight = torch.cat([head.linear.weight, head.timestep.linear.weight], 1)
    torch.testing.assert_close(head(h, embedding), h + both @ weight.T + head.linear.bias)


ATTACHED = [
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


@pytest.mark.parametrize(("name", "output", "noisy"), ATTACHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attached_heads_have_the_outputs_shape(name, output, noisy, dtype):
    head = OwnOutputHead(SPECS[name], output, noisy, E).to(dtype)
    x = None if noisy is None else torch.randn(2, *noisy).to(dtype)
    out = head(hidden_of(SPECS[name], dtype=dtype), torch.randn(2, E), x)
    assert out.shape == (2, *output) and out.dtype == dtype
    assert out.isfinite().all() and out.abs().max() < 10
    (out.float() - 0.1).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("shape", [(24, 8), (17, 8)])
def test_attached_heads_on_packed_latents_and_sequences(shape):
    output = (16, 64) if shape[0] == 24 else (2, 64)
    out = OwnOutputHead(HiddenSpec(shape, 1), output, None, 0)(torch.randn(2, *shape))
    assert out.shape == (2, *output) and out.isfinite().all()


def test_attached_features_see_the_noisy_input_and_patches_the_hidden_state():
    head, h = OwnOutputHead(FEATURES, IMAGE, IMAGE, 0), hidden_of(FEATURES)
    x = torch.randn(2, *IMAGE)
    assert not torch.equal(head(h, None, x), head(h, None, x + 1))
    patches, tokens = OwnOutputHead(TOKENS, IMAGE, IMAGE, 0), hidden_of(TOKENS)
    assert torch.equal(patches(tokens, None, x), patches(tokens, None, x + 1))
    assert not torch.equal(patches(tokens), patches(hidden_of(TOKENS)))


# --- carried head

LATE = HiddenSpec((16, 2, 2), 0)
PAIRS = {
    "tokens": (TOKENS, TOKENS, True),
    "features": (FEATURES, FEATURES, True),
    "last": (SWIN, SWIN, True),
    "vector": (VECTOR, VECTOR, True),
    "landing": (TOKENS, TOKENS, False),
    "unet": (FEATURES, LATE, False),
    "unet up": (LATE, FEATURES, False),
    "swin": (SWIN, HiddenSpec((2, 2, 16), 2), False),
}


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


# --- carried head with maps along time


def mapped(hidden, carried, relative, order=2, knots=3, dim=8, **more) -> CarriedHead:
    return CarriedHead(hidden, carried, dim, order=order, relative=relative, knots=knots, **more)


def at(state, t) -> CarriedState:
    """The same state at another time: both full steps move along."""
    t = torch.as_tensor(t).expand(len(state.gap1))
    moved = [replace(s, t=s.t - state.timestep + t) for s in (state.last, state.before)]
    return CarriedState.between(t, *moved)


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


@pytest.mark.parametrize("pair", ["tokens", "features", "last", "unet"])
@pytest.mark.parametrize("order", [1, 2])
def test_solving_finds_a_planted_rule_and_nothing_in_noise(pair, order):
    hidden, carried, relative = PAIRS[pair]
    truth, head, noise = (mapped(hidden, carried, relative, order, 2, width=3) for _ in range(3))
    levels = truth.maps.place([20.0, 40.0])
    for buffer in (truth.maps.down, truth.maps.up, truth.maps.offset):
        buffer.normal_(std=0.3)
    drawn = {t: [(hidden_of(hidden, 200), state_of(hidden, carried, 200))] for t in levels}

    def planted(t):
        for h, state in drawn[t]:
            yield Window(h, truth(h, torch.zeros(200, 8), state=at(state, t)), at(state, t))

    remains = solve(head, levels, planted)
    assert len(remains) == 2 and max(remains) < 1e-4
    for t in levels:
        h, state = hidden_of(hidden, 5), state_of(hidden, carried, 5)
        embedding, state = torch.zeros(5, 8), at(state, t)
        want, out = truth(h, embedding, state=state), head(h, embedding, state=state)
        assert (out - want).square().mean() < 1e-3 * (want - state.last.v).square().mean()

    def random(t):
        for h, state in drawn[t]:
            rest = state.last.v + torch.randn_like(state.last.v)
            yield Window(h, h + rest if relative else rest, state)

    assert min(solve(noise, levels, random)) > 0.7


def test_more_timesteps_than_knots_share_them():
    head = mapped(TOKENS, TOKENS, True, knots=3)
    assert head.maps.place(range(0, 1000, 20)) == [0.0, 480.0, 980.0]
    assert head.maps.weights(240.0) == [(0, 0.5), (1, 0.5)] and head.maps.weights(2000) == [
        (2, 1.0)
    ]
    assert head.maps.place([980.0, 0.0]) == [0.0, 980.0]
    asked = []
    solve(head, [0.0, 490.0, 980.0, 735.0], lambda t: asked.append(t) or ())
    assert sorted(set(asked)) == [0.0, 490.0, 735.0, 980.0]


def test_maps_survive_saving_and_half_precision():
    head = mapped(TOKENS, TOKENS, True)
    head.maps.place([981.0, 1.5])
    head.maps.down.normal_()
    other = mapped(TOKENS, TOKENS, True)
    other.load_state_dict(head.state_dict())
    assert other.maps.knots == [1.5, 981.0] and torch.equal(other.maps.down, head.maps.down)
    assert other.bfloat16().maps.knots == [1.5, 981.0]


def test_maps_refuse():
    head = mapped(TOKENS, TOKENS, True)
    state = state_of(TOKENS, TOKENS)
    with pytest.raises(ConfigError, match=r"built without maps.*knots=50"):
        solve(CarriedHead(TOKENS, TOKENS, E), [0.0], lambda t: ())
    with pytest.raises(CalibrationError, match=r"ridge=0 must be above 0"):
        solve(head, [0.0], lambda t: (), ridge=0)
    bad = hidden_of(TOKENS).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"NaN or infinity"):
        solve(head, [0.0], lambda t: [Window(hidden_of(TOKENS), bad, state)])
    with pytest.raises(ConfigError, match=r"at least one"):
        head.maps.place([])
    with pytest.raises(ConfigError, match=r"both must be at least 1"):
        mapped(TOKENS, TOKENS, True, knots=-1)
    # Nothing moved: plain reuse is exact, and stays.
    still = mapped(TOKENS, TOKENS, False)
    assert solve(still, [0.0], lambda t: [Window(state.last.h, state.last.v, state)]) == [0.0]
    assert not still.maps.down.any()


# --- what all heads share


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


def test_tokens_in_front_may_be_more_or_fewer_than_in_the_example():
    h, embedding = hidden_of(TOKENS), torch.randn(2, E)
    head = shake(UncertaintyHead(TOKENS, IMAGE, E))
    longer = torch.cat([torch.randn(2, 5, 8), h], dim=1)
    assert torch.equal(head(longer, embedding), head(h, embedding))
    assert not torch.equal(head(torch.cat([h, h[:, :5]], dim=1), embedding), head(h, embedding))


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


@pytest.mark.parametrize("frames_first", [False, True])
def test_frames_of_a_video_may_lead_or_follow_the_channels(frames_first):
    hidden = HiddenSpec((8, 5, 4, 4), 0)
    output = (5, 3, 8, 8) if frames_first else (3, 5, 8, 8)
    h, noisy = torch.randn(2, 8, 5, 4, 4), torch.randn(2, *output)
    head = shake(OwnOutputHead(hidden, output, output, 0))
    uncertainty = shake(UncertaintyHead(hidden, output, 0))
    u, out = uncertainty(h), head(h, None, noisy)
    assert out.shape == u.shape == (2, *output)
    moved = h.clone()
    moved[:, :, 0] += 1
    change = (uncertainty(moved) - u).abs()
    by_frame = change.amax(dim=(0, 2, 3, 4) if frames_first else (0, 1, 3, 4))
    assert by_frame[0] > 1e-3
    assert by_frame[1:].max() < 1e-6
