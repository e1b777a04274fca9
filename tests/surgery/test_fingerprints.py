"""Tokens tell tensors apart, prints tell their values apart; neither keeps one alive."""

from __future__ import annotations

import gc
import weakref

import torch

from exitkit.surgery.fingerprints import Prints, Tokens


def test_a_number_is_never_given_again() -> None:
    tokens, seen = Tokens(), set()
    for _ in range(50):
        seen.add(tokens.of(torch.zeros(3)))  # freed at once: its address comes again
    assert len(seen) == 50
    x = torch.zeros(3)
    assert tokens.of(x) == tokens.of(x) not in seen


def test_tensors_are_not_kept() -> None:
    tokens, prints, x = Tokens(), Prints(), torch.randn(4, 5)
    tokens.of(x)
    prints.of(x)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_changes_in_place_are_noted() -> None:
    tokens, x = Tokens(), torch.zeros(3)
    number = tokens.of(x)
    assert not tokens.written
    x.add_(1)
    assert tokens.of(x) == number and tokens.written == {number}


def test_prints_are_projections_along_each_axis() -> None:
    x = torch.randn(3, 4, 5)
    a, b, c = Prints().of(x)
    assert (a.shape, b.shape, c.shape) == ((3,), (4,), (5,))
    y = x.clone()
    y[1, 2, 3] += 1
    for axis, (one, other) in enumerate(zip((a, b, c), Prints().of(y), strict=True)):
        assert (one != other).nonzero().flatten().tolist() == [axis + 1]


def test_prints_of_a_vector_are_its_entries() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    (one,), (other,) = Prints().of(x), Prints().of(torch.tensor([1.0, 2.0, 4.0]))
    assert one.shape == (3,) and (one != other).tolist() == [False, False, True]
    (scalar,) = Prints().of(torch.tensor(2.0))
    assert scalar.shape == ()
