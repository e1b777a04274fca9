"""Directions of rows against the same rows alone."""

from __future__ import annotations

import random

from exitkit.execution.direction import followed


def test_rows_are_told_as_if_each_were_alone() -> None:
    rng = random.Random(0)
    turns = 0
    for _ in range(50):
        moves = [[rng.choice((-1.0, -1.0, 1.0)) for _ in range(3)] for _ in range(6)]
        together: tuple[float, ...] = ()
        alone: list[tuple[float, ...]] = [()] * 3
        for signs in moves:
            together, turned = followed(together, signs)
            for row, sign in enumerate(signs):
                alone[row], own = followed(alone[row], [sign])
                assert (row in turned) == bool(own)
                turns += bool(own)
            assert together == tuple(known[0] for known in alone)
    assert turns > 100  # the control: many did turn


def test_a_row_that_stays_has_no_step_and_keeps_its_direction() -> None:
    known, turned = followed((), [-1.0, -1.0])
    assert (known, turned) == ((-1.0, -1.0), ())
    known, turned = followed(known, [-1.0, 0.0])
    assert (known, turned) == ((-1.0, -1.0), (1,))
    assert followed(known, [-1.0, -1.0])[1] == ()


def test_calls_of_other_rows_go_by_what_all_rows_did() -> None:
    assert followed((-1.0, -1.0, 0.0), [-1.0]) == ((-1.0,), ())
    assert followed((-1.0, -1.0), [1.0]) == ((0.0,), (0,))
    assert followed((-1.0, 1.0), [-1.0]) == ((0.0,), (0,)), "nobody knows whose step it is"


def test_nan_is_no_direction() -> None:
    known, turned = followed((-1.0, -1.0), [float("nan"), -1.0])
    assert turned == (0,) and known == (0.0, -1.0)
