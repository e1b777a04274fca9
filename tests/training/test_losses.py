"""The loss against naive loops over elements, its gradients, and what a gradient stop changes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from exitkit.config import PRESETS, LossConfig
from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.training.losses import ExitLoss
from exitkit.training.tasks import Classification

SEEDS = [0, 1, 2]
SHAPE = (3, 2, 4, 4)


def make(seed, exits=3, final=False, u_shape=SHAPE, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(SHAPE, generator=g, dtype=dtype).requires_grad_()

    def uniform():
        return torch.rand(u_shape, generator=g, dtype=dtype).requires_grad_()

    out = SimpleNamespace(
        prediction=normal(),
        exits=[normal() for _ in range(exits)],
        uncertainty=[uniform() for _ in range(exits + final)],
    )
    return out, normal().detach()


def number(value):
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


# Naive references: Python floats, one element at a time.


def flat(tensor):
    return [row.flatten().tolist() for row in tensor.detach()]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def naive_squares(a, b):
    return [
        [(x - y) ** 2 for x, y in zip(r, s, strict=True)]
        for r, s in zip(flat(a), flat(b), strict=True)
    ]


def naive_mse(a, b):
    return mean(e for row in naive_squares(a, b) for e in row)


def naive_absolute(a, b):
    return [
        [math.tanh(abs(x - y)) for x, y in zip(r, s, strict=True)]
        for r, s in zip(flat(a), flat(b), strict=True)
    ]


def naive_relative(a, full):
    rows = []
    for r, s in zip(flat(a), flat(full), strict=True):
        size = math.sqrt(mean(y * y for y in s)) + 1e-6
        rows.append([math.tanh(abs(x - y) / size) for x, y in zip(r, s, strict=True)])
    return rows


def naive_fit(u, pseudo):
    return mean(
        (x - p) ** 2
        for r, q in zip(flat(u), pseudo, strict=True)
        for x, p in zip(r, q, strict=True)
    )


def naive_one_minus_u(u, squares, floor=0.0):
    return mean(
        max(1 - x, floor) * e
        for r, s in zip(flat(u), squares, strict=True)
        for x, e in zip(r, s, strict=True)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_paper_formula(seed):
    """Eq. 8, 11, 12: L_u over all layers with the last, L_UAL over those before it."""
    out, target = make(seed, final=True)
    parts = ExitLoss(config=PRESETS["paper"].loss)(out, target)
    outputs = [*out.exits, out.prediction]
    l_u = sum(
        naive_fit(u, naive_absolute(g, target))
        for u, g in zip(out.uncertainty, outputs, strict=True)
    )
    pairs = list(zip(out.uncertainty, out.exits, strict=False))
    l_ual = sum(naive_one_minus_u(u, naive_squares(g, target)) for u, g in pairs)
    simple = naive_mse(out.prediction, target)
    assert number(parts.uncertainty) == pytest.approx(l_u, rel=1e-9)
    assert number(parts.layers) == pytest.approx(l_ual, rel=1e-9)
    assert number(parts.final) == pytest.approx(simple, rel=1e-9)
    assert number(parts.total) == pytest.approx(simple + l_u + l_ual, rel=1e-9)
    assert parts.per_exit.tolist() == pytest.approx([naive_mse(g, target) for g in out.exits])


@pytest.mark.parametrize("seed", SEEDS)
def test_official_formula(seed):
    """MSE(final) + mean_i MSE(c_i, 1 - tanh|.|) + sum_i (cbar_i / sum cbar) MSE_i, all layers."""
    out, target = make(seed, final=True)
    parts = ExitLoss(config=PRESETS["official"].loss)(out, target)
    outputs = [*out.exits, out.prediction]
    certainty = [
        mean(1 - x for row in flat(u) for x in row) for u in out.uncertainty
    ]  # one number a layer: mean over the whole batch
    fits = []
    for u, g in zip(out.uncertainty, outputs, strict=True):
        wanted = [[1 - p for p in row] for row in naive_absolute(g, target)]
        fits.append(naive_fit(1 - u, wanted))
    errors = [naive_mse(g, target) for g in outputs]
    ual = sum(c / sum(certainty) * e for c, e in zip(certainty, errors, strict=True))
    assert number(parts.uncertainty) == pytest.approx(mean(fits), rel=1e-9)
    assert number(parts.layers) == pytest.approx(ual, rel=1e-9)
    assert number(parts.total) == pytest.approx(errors[-1] + mean(fits) + ual, rel=1e-9)
    # negative control: the paper's per-element weights are something else
    paper = ExitLoss(config=LossConfig(train_backbone=True))(out, target)
    assert abs(number(paper.layers) - ual) > 0.1


@pytest.mark.parametrize("preset", ["relative", "carried"])
@pytest.mark.parametrize("seed", SEEDS)
def test_relative_formula(seed, preset):
    out, _ = make(seed)
    parts = ExitLoss(config=PRESETS[preset].loss)(out)
    l_u = sum(
        naive_fit(u, naive_relative(g, out.prediction))
        for u, g in zip(out.uncertainty, out.exits, strict=True)
    )
    layers = sum(naive_mse(g, out.prediction) for g in out.exits)
    assert parts.final is None
    assert number(parts.uncertainty) == pytest.approx(l_u, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)
    assert number(parts.total) == pytest.approx(l_u + layers, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_target_model_with_absolute_uncertainty(seed):
    out, target = make(seed)
    parts = ExitLoss(config=LossConfig(target="model"))(out, target)
    pairs = list(zip(out.uncertainty, out.exits, strict=True))
    want = sum(naive_fit(u, naive_absolute(g, out.prediction)) for u, g in pairs)
    layers = sum(naive_one_minus_u(u, naive_squares(g, out.prediction)) for u, g in pairs)
    assert number(parts.uncertainty) == pytest.approx(want, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)
    # the frozen backbone's own loss is reported, not minimised
    assert number(parts.final) == pytest.approx(naive_mse(out.prediction, target), rel=1e-9)
    assert number(parts.total) == pytest.approx(want + layers, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_relative_gap_has_no_scale(seed):
    """Ten times the outputs, the same relative pseudo targets; the absolute ones change."""
    out, target = make(seed)
    big = SimpleNamespace(
        prediction=10 * out.prediction,
        exits=[10 * g for g in out.exits],
        uncertainty=out.uncertainty,
    )
    config = LossConfig(uncertainty_target="relative")
    small_u, big_u = (ExitLoss(config=config)(o, target).uncertainty for o in (out, big))
    torch.testing.assert_close(small_u, big_u, rtol=1e-4, atol=1e-6)
    absolute = [ExitLoss()(o, target).uncertainty for o in (out, big)]
    assert abs(number(absolute[0] - absolute[1])) > 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_of_the_parts(seed):
    out, target = make(seed)
    config = LossConfig(
        uncertainty_weight=0.3,
        layer_weight=0.7,
        final_weight=0.2,
        unweighted=0.5,
        weight_floor=0.4,
        train_backbone=True,
    )
    parts = ExitLoss(config=config)(out, target)
    plain = sum(naive_mse(g, target) for g in out.exits)
    floored = sum(
        naive_one_minus_u(u, naive_squares(g, target), floor=0.4)
        for u, g in zip(out.uncertainty, out.exits, strict=True)
    )
    assert number(parts.layers) == pytest.approx(floored, rel=1e-9)
    assert number(parts.unweighted) == pytest.approx(plain, rel=1e-9)
    want = 0.2 * naive_mse(out.prediction, target) + 0.3 * number(parts.uncertainty)
    assert number(parts.total) == pytest.approx(want + 0.7 * floored + 0.5 * plain, rel=1e-9)


def test_layer_weight_zero_leaves_the_users_loss():
    out, target = make(0)
    config = LossConfig(uncertainty_weight=0.0, layer_weight=0.0, train_backbone=True)
    total = ExitLoss(config=config)(out, target).total
    torch.testing.assert_close(total, torch.nn.functional.mse_loss(out.prediction, target))


def test_include_last():
    out, target = make(0, final=True)
    config = LossConfig(include_last=True)
    parts = ExitLoss(config=config)(out, target)
    want = sum(
        naive_one_minus_u(u, naive_squares(g, target))
        for u, g in zip(out.uncertainty, [*out.exits, out.prediction], strict=True)
    )
    assert number(parts.layers) == pytest.approx(want, rel=1e-9)
    assert parts.per_exit.shape == (3,)
    lacking, target = make(0)
    with pytest.raises(ConfigError, match="final=True"):
        ExitLoss(config=config)(lacking, target)


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_share_floor(floor):
    out, target = make(0)
    config = LossConfig(weighting="certainty_share", weight_floor=floor)
    certainty = [1 - number(u.detach().mean()) for u in out.uncertainty]
    want = sum(
        max(c / sum(certainty), floor) * naive_mse(g, target)
        for c, g in zip(certainty, out.exits, strict=True)
    )
    assert number(ExitLoss(config=config)(out, target).layers) == pytest.approx(want, rel=1e-9)


# Coarser uncertainties


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("u_shape", [(3,), (3, 1)], ids=str)
def test_one_uncertainty_a_row(seed, u_shape):
    out, target = make(seed, u_shape=u_shape)
    parts = ExitLoss()(out, target)
    l_u = layers = 0.0
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        pseudo = [mean(row) for row in naive_absolute(g, target)]
        error = [mean(row) for row in naive_squares(g, target)]
        value = u.detach().flatten().tolist()
        l_u += mean((v - p) ** 2 for v, p in zip(value, pseudo, strict=True))
        layers += mean((1 - v) * e for v, e in zip(value, error, strict=True))
    assert number(parts.uncertainty) == pytest.approx(l_u, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_uncertainty_a_token(seed):
    """Tokens are patches in row order: each is compared with the mean of its own patch."""
    out, target = make(seed, u_shape=(3, 4))
    parts = ExitLoss()(out, target)
    want = layers = 0.0
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        pseudo = (g.detach() - target).abs().tanh()
        terms = []
        for b in range(3):
            for token, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
                patch = pseudo[b, :, row : row + 2, column : column + 2]
                terms.append((number(u[b, token]) - mean(patch.flatten().tolist())) ** 2)
            error = mean(naive_squares(g, target)[b])
            layers += (1 - mean(u[b].tolist())) * error / 3
        want += mean(terms)
    assert number(parts.uncertainty) == pytest.approx(want, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)


def test_learned_variances_are_left_out():
    """Channels beyond the target's take no part, in outputs, maps and the size of y_N."""
    out, target = make(0)
    junk = torch.full(SHAPE, 50.0, dtype=torch.float64)
    wide = SimpleNamespace(
        prediction=torch.cat([out.prediction, junk], 1),
        exits=[torch.cat([g, -junk], 1) for g in out.exits],
        uncertainty=[torch.cat([u, 0 * junk], 1) for u in out.uncertainty],
    )
    for config in (LossConfig(), PRESETS["relative"].loss):
        assert ExitLoss(config=config)(wide, target) == _equal(ExitLoss(config=config)(out, target))
    # without a target nobody says what the channels are: all of them count
    relative = ExitLoss(config=PRESETS["relative"].loss)
    assert number(relative(wide).layers) > 100 > number(relative(wide, target).layers)


class _equal:
    def __init__(self, parts):
        self.parts = parts

    def __eq__(self, other):
        torch.testing.assert_close(vars(other), vars(self.parts))
        return True


# Gradients


def grads(config, seed=0, final=False):
    out, target = make(seed, final=final)
    ExitLoss(config=config)(out, target).total.backward()
    return out, target


def test_gradients_with_everything_stopped():
    config = LossConfig()
    out, target = grads(config)
    count = math.prod(SHAPE)
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        pseudo = (g.detach() - target).abs().tanh()
        torch.testing.assert_close(u.grad, 2 * (u.detach() - pseudo) / count)
        wanted = (1 - u.detach()) * 2 * (g.detach() - target) / count
        torch.testing.assert_close(g.grad, wanted)
    assert out.prediction.grad is None


def test_gradients_without_stops():
    config = LossConfig(detach_weight=False, detach_pseudo_target=False)
    out, target = grads(config)
    count = math.prod(SHAPE)
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        error = g.detach() - target
        pseudo = error.abs().tanh()
        u_grad = 2 * (u.detach() - pseudo) - error.square()
        torch.testing.assert_close(u.grad, u_grad / count)
        through = -2 * (u.detach() - pseudo) * (1 - pseudo.square()) * error.sign()
        g_grad = (1 - u.detach()) * 2 * error + through
        torch.testing.assert_close(g.grad, g_grad / count)


@pytest.mark.parametrize("preset", ["paper", "official", "relative"])
def test_gradcheck(preset):
    """Every path that is not stopped on purpose agrees with finite differences."""
    base = PRESETS[preset].loss.model_copy(
        update={"detach_weight": False, "detach_pseudo_target": False, "target": "task"}
    )
    out, target = make(0, exits=2, final=True)
    loss = ExitLoss(config=base.model_copy(update={"uncertainty_target": "absolute"}))

    def total(prediction, g1, g2, u1, u2, u3):
        moved = SimpleNamespace(prediction=prediction, exits=[g1, g2], uncertainty=[u1, u2, u3])
        return loss(moved, target).total

    assert torch.autograd.gradcheck(total, (out.prediction, *out.exits, *out.uncertainty))


def test_the_full_model_is_never_pulled_towards_its_exits():
    config = PRESETS["relative"].loss.model_copy(update={"detach_pseudo_target": False})
    out, _ = make(0)
    ExitLoss(config=config)(out).total.backward()
    assert out.prediction.grad is None
    assert all(number(g.grad.abs().sum()) > 0 for g in out.exits)


def test_official_weight_gradient_reaches_the_heads_only_if_not_stopped():
    share = {"weighting": "certainty_share", "uncertainty_weight": 0.0}
    for detached in (True, False):
        out, _ = grads(LossConfig(detach_weight=detached, **share))
        moved = sum(number(u.grad.abs().sum()) for u in out.uncertainty if u.grad is not None)
        assert (moved == 0) is detached
    # d/dc_i of sum_j w_j m_j is (m_i - mean of m under w) / sum c, and c = 1 - u
    out, target = grads(LossConfig(detach_weight=False, **share))
    c = torch.tensor([1 - number(u.detach().mean()) for u in out.uncertainty])
    m = torch.tensor([naive_mse(g, target) for g in out.exits])
    expected = -(m - (c * m).sum() / c.sum()) / c.sum() / math.prod(SHAPE)
    for u, want in zip(out.uncertainty, expected, strict=True):
        torch.testing.assert_close(u.grad, torch.full(SHAPE, number(want), dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("detached", [True, False])
def test_bias_of_a_free_uncertainty(seed, detached):
    """Without the stop, a free u settles at u_hat + m / 2; with it, at u_hat."""
    g = torch.Generator().manual_seed(seed)
    # errors small enough for the optimum to lie inside [0, 1]
    error = 0.6 * (2 * torch.rand(SHAPE, generator=g, dtype=torch.float64) - 1)
    target = torch.zeros(SHAPE, dtype=torch.float64)
    u = torch.full(SHAPE, 0.5, dtype=torch.float64, requires_grad=True)
    loss = ExitLoss(config=LossConfig(detach_weight=detached))
    out = SimpleNamespace(prediction=target, exits=[error], uncertainty=[u])
    optimiser = torch.optim.SGD([u], lr=0.2 * math.prod(SHAPE))
    for _ in range(100):
        optimiser.zero_grad()
        loss(out, target).total.backward()
        optimiser.step()
    pseudo = error.abs().tanh()
    biased = pseudo + error.square() / 2
    torch.testing.assert_close(u.detach(), pseudo if detached else biased, rtol=1e-6, atol=1e-8)
    # negative control: the two optima are apart
    assert number((biased - pseudo).max()) > 0.1


@pytest.mark.parametrize("detached", [True, False])
def test_pseudo_target_without_stop_lets_large_errors_grow(detached):
    """With u = u_hat, the weighted error (1 - tanh e) e^2 falls again beyond e = 1.109."""
    pulls = {}
    for e in (0.9, 1.4):
        g = torch.full((1, 1, 1, 1), e, dtype=torch.float64, requires_grad=True)
        # u follows g, as a well-fitted head's output does
        u = g.abs().tanh().detach() if detached else g.abs().tanh()
        out = SimpleNamespace(prediction=torch.zeros_like(g), exits=[g], uncertainty=[u])
        config = LossConfig(detach_weight=detached, uncertainty_weight=0.0)
        ExitLoss(config=config)(out, torch.zeros_like(g)).total.backward()
        pulls[e] = number(g.grad)
    assert pulls[0.9] > 0
    assert (pulls[1.4] > 0) is detached


# Classification


def classes(seed, exits=2):
    g = torch.Generator().manual_seed(seed)
    logits = [
        (2 * torch.randn(6, 4, generator=g, dtype=torch.float64)).requires_grad_()
        for _ in range(exits + 1)
    ]
    us = [torch.rand(6, generator=g, dtype=torch.float64) for _ in range(exits)]
    labels = torch.randint(0, 4, (6,), generator=g)
    return SimpleNamespace(prediction=logits[0], exits=logits[1:], uncertainty=us), labels


def naive_softmax(row):
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("seed", SEEDS)
def test_classification_absolute(seed):
    out, labels = classes(seed)
    parts = ExitLoss(Classification(), LossConfig())(out, labels)
    l_u = layers = 0.0
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        for row, label, v in zip(g.tolist(), labels.tolist(), u.tolist(), strict=True):
            wrong = number(row.index(max(row)) != label)
            l_u += (v - wrong) ** 2 / 6
            layers += (1 - v) * -math.log(naive_softmax(row)[label]) / 6
    assert number(parts.uncertainty) == pytest.approx(l_u, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_classification_relative(seed):
    out, labels = classes(seed)
    parts = ExitLoss(Classification(), PRESETS["relative"].loss)(out, labels)
    l_u = layers = 0.0
    for u, g in zip(out.uncertainty, out.exits, strict=True):
        for b in range(6):
            p, q = naive_softmax(g[b].tolist()), naive_softmax(out.prediction[b].tolist())
            variation = sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
            l_u += (number(u[b]) - variation) ** 2 / 6
            layers += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)) / 6
    assert number(parts.uncertainty) == pytest.approx(l_u, rel=1e-9)
    assert number(parts.layers) == pytest.approx(layers, rel=1e-9)
    parts.total.backward()
    assert out.prediction.grad is None


def test_classification_absolute_against_the_model():
    out, labels = classes(0)
    parts = ExitLoss(Classification(), LossConfig(target="model"))(out, labels)
    differs = [(g.argmax(1) != out.prediction.argmax(1)).double() for g in out.exits]
    want = sum(((u - d) ** 2).mean() for u, d in zip(out.uncertainty, differs, strict=True))
    torch.testing.assert_close(parts.uncertainty, want)


# Edges


def test_half_precision_is_summed_in_float32():
    out, target = make(0, dtype=torch.float32)
    half = SimpleNamespace(
        prediction=out.prediction.bfloat16(),
        exits=[g.bfloat16() for g in out.exits],
        uncertainty=[u.bfloat16() for u in out.uncertainty],
    )
    parts = ExitLoss()(half, target)
    assert parts.total.dtype == torch.float32
    torch.testing.assert_close(parts.total, ExitLoss()(out, target).total, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "match"),
    [("exit", "exit 2"), ("uncertainty", "uncertainty"), ("final", "final"), ("target", "exit 1")],
)
def test_non_finite_names_the_part(where, match, bad):
    out, target = make(0)
    with torch.no_grad():
        {
            "exit": out.exits[1],
            "uncertainty": out.uncertainty[0],
            "final": out.prediction,
            "target": target,
        }[where].view(-1)[3] = bad
    with pytest.raises(NonFiniteError, match=match) as caught:
        ExitLoss()(out, target)
    assert ("exit 1" in str(caught.value)) is (where == "target")


def test_refusals():
    out, target = make(0)
    with pytest.raises(ConfigError, match="target='model'"):
        ExitLoss()(out)
    with pytest.raises(ConfigError, match="train_backbone=True"):
        ExitLoss(config=LossConfig(target="model", train_backbone=True))(out)
    with pytest.raises(ConfigError, match=r"first argument is the task, got LossConfig.*config="):
        ExitLoss(LossConfig())
    with pytest.raises(ShapeError, match="twice the channels"):
        ExitLoss()(out, target[:2])
    short = SimpleNamespace(prediction=out.prediction, exits=out.exits, uncertainty=[])
    with pytest.raises(ConfigError, match="3 exits with 0 uncertainties"):
        ExitLoss()(short, target)
    odd = SimpleNamespace(
        prediction=out.prediction,
        exits=[out.exits[0], out.exits[1][:, :1], out.exits[2]],
        uncertainty=out.uncertainty,
    )
    with pytest.raises(ShapeError, match="exit 2 gives"):
        ExitLoss()(odd, target)


def test_accepts_a_whole_config():
    out, target = make(0, final=True)
    whole, part = ExitLoss(config=PRESETS["paper"]), ExitLoss(config=PRESETS["paper"].loss)
    assert whole(out, target) == _equal(part(out, target))


def test_the_task_says_how_outputs_are_measured():
    """The line of a user's own loop: `ExitLoss(task)(model(..., output_exits=True), target)`."""
    logits = SimpleNamespace(
        prediction=torch.randn(3, 5), exits=[torch.randn(3, 5)], uncertainty=[torch.rand(3)]
    )
    labels = torch.tensor([0, 4, 2])
    parts = ExitLoss(Classification())(logits, labels)
    want = torch.nn.functional.cross_entropy(logits.exits[0], labels)
    torch.testing.assert_close(parts.per_exit[0], want)
    # negative control: a regression cannot be measured against classes
    with pytest.raises(ShapeError):
        ExitLoss()(logits, labels)
