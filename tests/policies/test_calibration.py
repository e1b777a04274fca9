"""What a calibration leaves behind: plain values that survive JSON."""

from __future__ import annotations

import json

import pytest

from exitkit.errors import ConfigError
from exitkit.policies import (
    FULL,
    Calibration,
    Certificate,
    FixedExit,
    Measurement,
    NeverExit,
    StepSchedule,
    UncertaintyThreshold,
)

HISTORY = (
    Measurement(NeverExit(), 1.0, 0.0, 0.0),
    Measurement(UncertaintyThreshold(0.1, per_timestep=((300.0, 0.2),)), 0.61, 0.02, 0.05),
    Measurement(StepSchedule((FULL, 1, 2)), 0.4, 0.3),
)
CERTIFICATE = Certificate(
    method="ltt",
    value=0.1,
    delta=0.1,
    loss_bound=1.0,
    count=64,
    seeds=(20_000, 20_063),
    candidates=(NeverExit(), HISTORY[1].policy),
    risks=(0.0, 0.02),
    statistics=(0.001, 0.02),
    limit=0.1,
    chosen=1,
)
CALIBRATION = Calibration(
    HISTORY[1].policy,
    0.61,
    0.02,
    relative=0.05,
    max_error=0.1,
    history=HISTORY,
    certificate=CERTIFICATE,
    sampler={"scheduler": "DDIMScheduler", "steps": 3},
    seeds=(10_000, 10_007),
    seconds=1.5,
)


def test_everything_comes_back_from_json() -> None:
    for made in (
        *HISTORY,
        CERTIFICATE,
        CALIBRATION,
        Calibration(FixedExit(1), 0.5, 0.1, budget=0.5),
    ):
        text = json.dumps(made.to_dict(), allow_nan=False)
        assert type(made).from_dict(json.loads(text)) == made
    # Negative control: another number is another calibration.
    other = CALIBRATION.to_dict() | {"cost": 0.62}
    assert Calibration.from_dict(other) != CALIBRATION


def test_an_unknown_policy_is_refused() -> None:
    broken = HISTORY[0].to_dict() | {"policy": {"name": "nonesuch"}}
    with pytest.raises(ConfigError, match="no policy 'nonesuch'"):
        Measurement.from_dict(broken)


def test_the_words_tell_both_errors_and_what_was_tried() -> None:
    text = str(CALIBRATION)
    assert text.startswith("Calibrated for error at most 0.1: cost 0.6100, error 0.02 (5.00% of")
    marked = [line for line in text.splitlines() if line.startswith(">")]
    assert [line.endswith(str(CALIBRATION.policy)) for line in marked] == [True]
    assert all(str(m.policy) in text for m in HISTORY) and "Certified by Learn then Test" in text
    plain = str(Calibration(FixedExit(1), 0.5, 0.1, budget=0.5))
    assert plain == "Calibrated for budget 0.5: cost 0.5000, error 0.1"


def test_a_certificate_says_what_it_holds_for() -> None:
    text = str(CERTIFICATE)
    for words in (
        "on 64 fresh trajectories (seeds 20000 to 20063), 2 of 2 candidates tested",
        "with probability at least 0.9 over the seeds",
        "mean error of new trajectories is at most 0.1",
        "p-value 0.02, at most 0.1 allowed",
    ):
        assert words in text
    assert CERTIFICATE.policy == HISTORY[1].policy


def found(*measured: tuple[float, float], chosen: int) -> list[str]:
    history = tuple(
        Measurement(FixedExit(i + 1), cost, error) for i, (cost, error) in enumerate(measured)
    )
    best = history[chosen]
    made = Calibration(best.policy, best.cost, best.error, budget=0.5, history=history)
    return str(made).splitlines()


def test_the_words_tell_why_this_policy_was_chosen() -> None:
    (_, why, *rest) = found((1.0, 0.0), (0.5, 0.3), (0.3, 0.2), (0.509, 0.25), chosen=2)
    assert why == (
        "  the closest to the full model of 3 measured within the budget; fixed_exit(exit=4) costs "
        "0.5090 and is farther"
    ).replace("fixed_exit(exit=4)", str(FixedExit(4)))
    assert len(rest) == 4
    assert found((0.5, 0.3), (0.4, 0.3), chosen=1)[1].endswith("costs 0.5000 and is no closer")
    # Control: nothing is said of others where the one chosen fills the budget.
    assert found((0.5, 0.2), (0.4, 0.3), chosen=0)[1].endswith("of 2 measured within the budget")
    bound = Calibration(FixedExit(1), 0.5, 0.1, max_error=0.2, history=HISTORY[:1])
    assert str(bound).splitlines()[1] == "  the cheapest of those measured within the bound"
