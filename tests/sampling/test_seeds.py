"""Seeds: counted up or listed; nothing else names a sample."""

from __future__ import annotations

import itertools

import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.sampling.generate import generate
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.seeds import CALIBRATE, CERTIFY, COMPARE, FIT, seed_list
from tests.sampling.helpers import SHAPE, Conv, draw


def test_seeds_are_counted_up_from_the_first():
    counted = draw(Conv(), "ddim", SHAPE, steps=2, seeds=range(7, 10))
    assert counted.seeds == (7, 8, 9)
    listed = draw(Conv(), "ddim", SHAPE, steps=2, seeds=torch.tensor([7, 8, 9]).numpy())
    assert torch.equal(counted.samples, listed.samples)
    assert draw(Conv(), "ddim", SHAPE, steps=2).seeds == (0,)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (0, "seeds=0 names no sample"),
        (-3, "seeds=-3 names no sample"),
        ([], "names no sample"),
        (True, "seeds must be a whole number or a sequence"),
        ("12", "seeds must be a whole number or a sequence"),
        ([1.5], "A seed must be a whole number"),
        ([-1], "A seed must be"),
        ([2**63], "A seed must be"),
    ],
)
def test_what_names_no_sample_is_refused(seeds, message):
    with pytest.raises(ConfigError, match=message):
        generate(Conv(), Sampler("ddim", SHAPE), seeds)


def test_a_number_counts_from_where_the_verb_starts():
    assert seed_list(3, CALIBRATE) == (10_000, 10_001, 10_002)
    assert seed_list([7, 2], CALIBRATE) == (7, 2)  # listed seeds are meant as they are
    assert seed_list([2**63 - 1]) == (2**63 - 1,)


def test_verbs_count_from_places_of_their_own():
    places = (FIT, CALIBRATE, CERTIFY, COMPARE)
    assert all(b - a >= 10_000 for a, b in itertools.pairwise(places))
