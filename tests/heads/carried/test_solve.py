"""Maps solved for in closed form."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import CalibrationError, ConfigError, NonFiniteError
from exitkit.heads import CarriedHead, Window
from exitkit.heads.carried.solve import solve
from tests.heads.carried.states import PAIRS, at, mapped, state_of
from tests.heads.specs import TOKENS, E, hidden_of


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
