"""The regression against made-up truths, and the order in which steps are solved."""

import pytest
import torch

from exitkit.errors import NonFiniteError
from exitkit.heads.completion.solve import Solved, StepSolver, Window, solve


def window(seed, truth, noise=0.0, rows=8):
    numbers = torch.Generator().manual_seed(seed)
    columns = [torch.randn(rows, 2, 5, generator=numbers) + i for i in range(5)]
    parts = [*columns, torch.ones(rows, 2, 5)]
    change = sum(c * p for c, p in zip(truth, parts, strict=True))
    change = change + noise * torch.randn(change.shape, generator=numbers)
    return Window(columns, change, torch.arange(rows) >= rows - rows // 4)


TRUTH = (0.5, -1.0, 0.25, 2.0, 0.0, 3.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_truth_is_found_again(seed):
    solver = StepSolver()
    for part in range(3):
        solver.add(window(10 * seed + part, TRUTH))
    scalars, remains = solver.solve()
    torch.testing.assert_close(scalars, torch.tensor(TRUTH).double(), rtol=1e-3, atol=1e-3)
    assert remains < 1e-6


def test_least_squares_by_another_way():
    found = window(0, TRUTH, noise=1.0)
    solver = StepSolver()
    solver.add(found)
    scalars, _ = solver.solve()
    x = torch.stack([*(c.flatten() for c in found.columns), torch.ones(80)], dim=1).double()
    y = found.change.flatten().double()
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    error = (x @ scalars - y).square().mean() / (x @ best - y).square().mean()
    assert 1 <= error + 1e-9 < 1.05


def test_what_does_not_serve_other_rows_is_left_out():
    solver = StepSolver()
    numbers = torch.Generator().manual_seed(0)
    columns = [torch.randn(8, 3, generator=numbers) for _ in range(5)]
    change = columns[0].clone()
    judges = torch.arange(8) >= 6
    change[judges] = -columns[0][judges]  # what serves the first six harms the others
    solver.add(Window(columns, change, judges))
    scalars, remains = solver.solve()
    assert torch.equal(scalars, torch.zeros(6).double()) and remains == 1.0


def test_columns_of_zeros_get_nothing_and_entries_that_do_not_count_tell_nothing():
    found = window(0, TRUTH)
    counts = torch.ones_like(found.change, dtype=torch.bool)
    counts[:, 0] = False
    found.change[:, 0] = 100.0
    columns = [*found.columns[:4], torch.zeros_like(found.change)]
    solver = StepSolver()
    solver.add(Window(columns, found.change, found.judges, counts))
    scalars, _ = solver.solve()
    torch.testing.assert_close(scalars, torch.tensor(TRUTH).double(), rtol=1e-3, atol=1e-3)
    assert scalars[4] == 0
    wrong = StepSolver()
    wrong.add(Window(columns, found.change, found.judges))
    assert not torch.allclose(wrong.solve()[0], scalars, rtol=1e-2)


def test_what_is_not_finite_is_refused():
    found = window(0, TRUTH)
    found.change[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        StepSolver().add(found)


class Walked:
    def __init__(self):
        self.done = []

    def place(self, step):
        return 900.0 - step, step != 1

    def windows(self, step):
        # Each step's truth rests on what the step before was solved to.
        assert len(self.done) == step
        shift = float(self.done[-1][0]) if self.done else 0.0
        yield window(step, (shift + 1, *TRUTH[1:]))

    def advance(self, step, scalars):
        self.done.append(scalars)


def test_every_step_is_solved_where_those_before_have_led():
    found = solve(Walked(), 3)
    assert [s.timestep for s in found] == [900.0, 899.0, 898.0]
    assert [s.full for s in found] == [True, False, True]
    assert all(isinstance(s, Solved) for s in found)
    assert [round(float(s.scalars[0]), 2) for s in found] == [1.0, 2.0, 3.0]
