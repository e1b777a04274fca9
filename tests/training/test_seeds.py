"""Random numbers are functions of a seed and a place."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from exitkit.modes.flags import preserved_rng
from exitkit.training.seeds import derive, generator, seed_everything


def test_places_have_seeds_of_their_own():
    seeds = {derive(s, name, i) for s in range(4) for name in ("draw", "load") for i in range(50)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    digest = hashlib.blake2b(b"(3, 'draw', 7)", digest_size=8).digest()
    assert derive(3, "draw", 7) == int.from_bytes(digest, "big") // 2


def test_a_generator_says_the_same_whatever_was_drawn_before():
    first = torch.randn(4, generator=generator(0, "draw", 1))
    torch.randn(10)
    assert torch.equal(first, torch.randn(4, generator=generator(0, "draw", 1)))
    assert not torch.equal(first, torch.randn(4, generator=generator(0, "draw", 2)))


def drawn():
    return (*torch.rand(2).tolist(), *np.random.rand(2).tolist(), random.random())


def test_all_three_sources_are_seeded_and_given_back():
    seed_everything(2**40 + 1)
    want = drawn()
    seed_everything(2**40 + 1)
    with pytest.raises(KeyError), preserved_rng():
        seed_everything(5)
        assert drawn() != want
        raise KeyError
    assert drawn() == want
