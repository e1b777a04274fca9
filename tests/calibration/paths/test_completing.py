"""The path of completions: costs fall, the ends are what they say."""

from exitkit.calibration.paths.completing import CompletingPath
from exitkit.policies import FULL


def test_from_full_steps_alone_to_the_fewest():
    path = CompletingPath(10)
    assert path.settings == 8
    counts = [path.at(place / 7).per_step.count(FULL) for place in range(8)]
    assert counts == [10, 9, 8, 7, 6, 5, 4, 3]
    costs = [path.expected_cost(place / 7) for place in range(8)]
    assert costs == [count / 10 for count in counts]
    assert path.at(1.0).per_step == (FULL, FULL, *(0,) * 7, FULL)


def test_variants_cost_the_same():
    path = CompletingPath(10)
    assert path.variants(0.0) == ()
    assert {p.per_step.count(FULL) for p in path.variants(5 / 7)} == {5}


def test_few_steps_have_one_setting():
    for steps in (1, 2, 3):
        path = CompletingPath(steps)
        assert path.settings == 1 and path.at(0.0).per_step == (FULL,) * steps
