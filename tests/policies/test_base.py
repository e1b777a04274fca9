"""The same policy at another setting, and what is another policy."""

from __future__ import annotations

import pytest

from exitkit.errors import ConfigError
from exitkit.policies import (
    CALM,
    FirstBlockSimilarity,
    FixedExit,
    Interval,
    NeverExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
)

PRICED = Oracle(price=1.0, costs=(0.5,))


@pytest.mark.parametrize(
    ("policy", "value", "wanted"),
    [
        (UncertaintyThreshold(0.1, patience=2), 0.3, UncertaintyThreshold(0.3, patience=2)),
        (Interval(3, 2), 5.0, Interval(5, 2)),
        (Patience(2), 3.0, Patience(3)),
        (Patience(2, tolerance=0.1), 0.5, Patience(2, tolerance=0.5)),
        (Oracle(delta=0.1), 0.2, Oracle(delta=0.2)),
        (PRICED, 2.0, Oracle(price=2.0, costs=(0.5,))),
        (CALM("meta", 0.9, decay=4.0), 0.5, CALM("meta", 0.5, decay=4.0)),
    ],
    ids=str,
)
def test_another_setting_changes_the_tunable_field_alone(
    policy: Policy, value: float, wanted: Policy
) -> None:
    moved = policy.at(value)
    assert moved == wanted and policy != wanted
    assert policy.same_family(moved) and moved.same_family(policy)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UncertaintyThreshold(0.1), UncertaintyThreshold(0.1, patience=2)),
        (Patience(2), Patience(2, tolerance=0.1)),
        (Patience(2, tolerance=0.1), Patience(3, tolerance=0.1)),
        (Oracle(delta=1.0), PRICED),
        (CALM("meta", 0.9), CALM("cosine", 0.9)),
        (FirstBlockSimilarity(0.1), FirstBlockSimilarity(0.1, depth=2)),
        (FixedExit(1), FixedExit(2)),
        (FixedExit(1), NeverExit()),
    ],
    ids=str,
)
def test_another_field_makes_another_family(one: Policy, other: Policy) -> None:
    assert one.same_family(one) and other.same_family(other)
    assert not one.same_family(other) and not other.same_family(one)


def test_what_has_no_tunable_field_or_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"FixedExit has no field that trades.*Tunable\("):
        FixedExit(2).at(1)
    with pytest.raises(ConfigError, match=r"UncertaintyThreshold.threshold must be .*got 1.5"):
        UncertaintyThreshold(0.1).at(1.5)


def test_long_fields_are_printed_by_their_first_values_and_a_count() -> None:
    pairs = tuple((float(t), 0.1) for t in range(0, 980, 20))
    long = UncertaintyThreshold(0.05, per_timestep=pairs)
    assert str(long).endswith("per_timestep=((0, 0.1), (20, 0.1), (40, 0.1), and 46 more))")
    assert repr(long).count("0.1)") == 49, "all of them are there for those who ask"
    # Control: what is short is shown.
    assert str(UncertaintyThreshold(0.05, per_timestep=pairs[:8])).count("0.1)") == 8
