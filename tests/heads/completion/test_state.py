"""What rows keep, against lists kept row by row."""

import random

import pytest
import torch

from exitkit.heads.completion.state import KEPT, FullStep, behind


def step(number, rows=4):
    values = 10.0 * number + torch.arange(rows)
    return FullStep(values[:, None], values[:, None] + 0.5, values)


@pytest.mark.parametrize("seed", range(5))
def test_the_last_full_steps_of_each_row(seed):
    draw, state, lists = random.Random(seed), None, [[] for _ in range(4)]
    for number in range(8):
        mask = torch.tensor([draw.random() < 0.6 for _ in range(4)])
        mask[0] |= not lists[0]
        before = state
        state = behind(state, step(number), None if bool(mask.all()) else mask)
        for row in range(4):
            if bool(mask[row]):
                lists[row].insert(0, number)
        for row in range(4):
            kept = lists[row][:KEPT]
            assert int(state.count[row]) == len(kept)
            assert state.fewest <= len(kept)
            assert bool(state.ready[row]) == (len(kept) >= 2)
            for place, known in enumerate(kept):
                assert float(state.steps[place].timestep[row]) == 10.0 * known + row
                assert float(state.steps[place].prediction[row]) == 10.0 * known + row + 0.5
        assert state is not before
        some = state.take(torch.tensor([1, 3]))
        assert torch.equal(some.count, state.count[[1, 3]])
        assert torch.equal(some.steps[0].noisy, state.steps[0].noisy[[1, 3]])


def test_rows_that_lose_their_steps_begin_anew():
    state = None
    for number in range(3):
        state = behind(state, step(number), None)
    assert state.fewest == 3 or state.fewest == KEPT
    lost = state.without(torch.tensor([1]))
    assert lost.ready.tolist() == [True, False, True, True] and lost.fewest == 0
    again = behind(lost, step(3), None)
    assert again.count.tolist() == [min(4, KEPT), 1, min(4, KEPT), min(4, KEPT)]
    assert again.ready.tolist() == [True, False, True, True]
    assert torch.equal(again.steps[0].prediction, step(3).prediction)
