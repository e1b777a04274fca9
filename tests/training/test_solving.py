"""Maps of carried exits, solved for on rollouts."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.heads import CarriedState, FullStep
from exitkit.training import Checkpoints
from exitkit.training.carried import CarriedLoss
from exitkit.training.fit import fit
from exitkit.training.solving import solve_maps
from tests.training.test_carried import Net, TinyUNet, gen, make, rollouts


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("net", [Net, TinyUNet])
def test_solved_maps_beat_plain_reuse_on_other_rollouts(net, seed):
    model = make(net=net, seed=seed, knots=8)
    source = rollouts(model, batch_size=16, seeds=range(100 * seed, 100 * seed + 32))
    remains = solve_maps(model, source, gaps=(1, 2), previous_gaps=(1, 2))
    assert list(remains) == [1] and len(remains[1]) == source.sampler.steps - 1
    fresh = rollouts(model, batch_size=16, seeds=range(900, 916))
    windows = CarriedLoss(gaps=(1, 1)).sample(fresh[0], 64, {1: model.heads.output[0]}, gen(seed))
    solved = CarriedLoss(gaps=(1, 1))(model, windows).layers
    assert float(solved) < 0.7
    # Negative control: without maps the error is that of plain reuse, 1 by definition.
    model.heads.output[0].maps.place([0.0])
    plain = CarriedLoss(gaps=(1, 1))(model, windows).layers
    assert float(plain) == pytest.approx(1.0, rel=1e-3)


def test_maps_equal_a_naive_ridge_regression():
    model = make(knots=8)
    head = model.heads.output[0]
    source = rollouts(model, batch_size=40, seeds=40)
    solve_maps(model, source, gaps=(1,), previous_gaps=(1,), ridge=1e-3)
    rollout, now = source[0], 4
    h, v = rollout.hidden[1], rollout.landing[1]
    rest = v - h
    gap = float(rollout.t_normalized[now - 1] - rollout.t_normalized[now]) / 20
    ones = torch.ones_like(h[now][..., :1])
    x = torch.cat(
        [
            h[now] - h[now - 1],
            gap * h[now],
            gap * rest[now - 1],
            h[now - 1] - h[now - 2],
            rest[now - 1] - rest[now - 2],
            gap * ones,
        ],
        dim=-1,
    )
    x, y = x.flatten(0, -2).double(), (rest[now] - rest[now - 1]).flatten(0, -2).double()
    scale = x.square().sum(0).sqrt()
    x = x / scale
    weights = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ y)
    fitted = x @ weights
    linear = x[:, :-1] @ weights[:-1]
    _, directions = torch.linalg.eigh(linear.T @ linear)
    main = directions[:, -head.maps.rank :]
    expected = rest[now - 1].flatten(0, -2) + linear @ main @ main.T + x[:, -1:] @ weights[-1:]
    t = rollout.t_normalized[:, None].expand(-1, 40)
    state = CarriedState.between(
        t[now],
        FullStep(h[now - 1], rest[now - 1], t[now - 1]),
        FullStep(h[now - 2], rest[now - 2], t[now - 2]),
    )
    assert torch.allclose(state.gap1, torch.tensor(gap / 50))
    out = head(h[now], model.heads.embed(t[now]), state=state) - h[now]
    torch.testing.assert_close(out.flatten(0, -2).double(), expected, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(fitted, torch.zeros_like(fitted), atol=1e-3)


def test_fit_solves_first_and_then_trains_the_uncertainty_heads():
    model = make(knots=8)
    before = {n: p.clone() for n, p in model.heads.named_parameters()}
    assert before and all(n.startswith("uncertainty") for n in before)
    told = Checkpoints(log_every=1)
    result = fit(model, rollouts(model), steps=4, checkpoints=told, progress=False)
    assert result.history[0]["layers"] < 1
    assert any(not torch.equal(p, before[n]) for n, p in model.heads.named_parameters())


def test_rollouts_without_hidden_states_cannot_be_solved_on():
    model = make(knots=8)
    with pytest.raises(ConfigError, match=r"keep hidden states.*hidden=True"):
        solve_maps(model, rollouts(model, hidden=False))
    with pytest.raises(ConfigError, match=r"trajectories of 1 step.*at least 2 steps.*relative"):
        solve_maps(model, rollouts(model, steps=1))
    perceptron = make()
    assert solve_maps(perceptron, rollouts(perceptron)) == {}
