"""How far carried exits land from the full model, against a loop over rows."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import CarriedHead, Window
from exitkit.heads.carried.loss import landing_error
from tests.heads.carried.states import PAIRS, state_of
from tests.heads.specs import E, hidden_of, shake


def square(x):
    return sum(v * v for v in x.flatten().tolist()) / x.numel()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("floor", [0.0, 1e-2])
def test_errors_equal_the_loop(pair, floor):
    hidden, carried, relative = PAIRS[pair]
    head = shake(CarriedHead(hidden, carried, E, relative=relative))
    window = Window(hidden_of(hidden), hidden_of(carried), state_of(hidden, carried))
    embedding = torch.randn(2, E)
    errors = landing_error(head, window, embedding, floor)
    landing = head(window.h, embedding, state=window.state)
    assert torch.equal(errors.landing, landing)
    reused = window.state.last.v + (window.h if relative else 0)
    ratios, plain = [], []
    for row in range(2):
        size = square(window.landing[row])
        error = square(landing[row] - window.landing[row])
        ratios.append(error / (square(reused[row] - window.landing[row]) + floor * size))
        plain.append(error / size)
    assert float(errors.relative.detach()) == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert float(errors.plain.detach()) == pytest.approx(sum(plain) / 2, rel=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_untrained_heads_are_plain_reuse(pair):
    hidden, carried, relative = PAIRS[pair]
    head = CarriedHead(hidden, carried, E, relative=relative)
    window = Window(hidden_of(hidden), hidden_of(carried), state_of(hidden, carried))
    errors = landing_error(head, window, torch.randn(2, E), floor=0.0)
    assert float(errors.relative.detach()) == pytest.approx(1.0, rel=1e-6)
    # Negative control: another landing is another error.
    other = landing_error(shake(head), window, torch.randn(2, E), floor=0.0)
    assert abs(float(other.relative.detach()) - 1) > 1e-3


def test_nothing_moved_is_no_division_by_zero():
    hidden, carried, relative = PAIRS["tokens"]
    head, state = CarriedHead(hidden, carried, E), state_of(hidden, carried)
    window = Window(state.last.h, state.last.h + state.last.v, state)
    assert not landing_error(head, window, torch.randn(2, E)).relative
