"""Every policy as settings: it survives JSON exactly, prints what was set, and presets name one."""

from __future__ import annotations

import json

import pytest

from exitkit.config import PRESETS
from exitkit.policies import FULL, NeverExit, StepSchedule, UncertaintyThreshold, policy_from_dict
from tests.policies.families_of_one_step import OF_ONE_STEP
from tests.policies.families_over_time import OVER_TIME

ALL = [policy for f in (*OF_ONE_STEP, *OVER_TIME) for policy in f.policies]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_the_dictionary_survives_json_exactly(policy):
    data = policy.to_dict()
    assert policy_from_dict(data) == policy
    back = policy_from_dict(json.loads(json.dumps(data)))
    assert back == policy and repr(back) == repr(policy) and hash(back) == hash(policy)


def test_printing_shows_what_was_set():
    assert str(NeverExit()) == "NeverExit()"
    assert str(StepSchedule((FULL, 1))) == "StepSchedule(per_step=(FULL, 1))"
    policy = UncertaintyThreshold(1 / 3, batch_mean=True, per_timestep=((500.0, 0.25),))
    shown = "threshold=0.3333, per_timestep=((500, 0.25),), batch_mean=True"
    assert str(policy) == f"UncertaintyThreshold({shown})"


def test_every_preset_names_a_policy():
    thresholds = {}
    for name, config in PRESETS.items():
        policy = policy_from_dict(config.policy)
        if isinstance(policy, UncertaintyThreshold):
            thresholds[name] = policy.threshold
        for key, value in config.policy.items():
            assert key == "name" or getattr(policy, key) == value
    assert thresholds == {"paper": 0.08, "official": 0.08, "relative": 0.05, "carried": 0.05}
