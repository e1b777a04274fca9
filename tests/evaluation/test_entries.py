"""Entries: which policy runs, and that it runs for a while only."""

from __future__ import annotations

import pytest
from torch import nn

from exitkit.errors import ConfigError
from exitkit.evaluation.entries import Entry, acting, check_names, check_wrapped
from exitkit.policies import FixedExit, NeverExit
from tests.tiny_suites import wrapped


def test_the_policy_of_an_entry_is_its_own_or_the_models():
    model = wrapped("relative")
    assert Entry("a", model).acting is model.policy
    assert Entry("a", model, FixedExit(2)).acting == FixedExit(2)
    assert Entry("a", nn.Identity()).acting is None
    with pytest.raises(ConfigError, match="'threshold' of 'a' has to be calibrated"):
        _ = Entry("a", model, "threshold").acting


def test_a_policy_acts_for_a_while_also_when_something_fails():
    model = wrapped("relative")
    own = model.policy
    with pytest.raises(RuntimeError), acting(model, FixedExit(1)):
        assert model.policy == FixedExit(1)
        raise RuntimeError
    assert model.policy is own
    with acting(model, None):
        assert model.policy is own
    with acting(nn.Identity(), NeverExit()):
        pass


def test_what_cannot_be_compared_is_refused():
    check_names("here", ["a", "b"])
    for names in ([], ["a", "a"]):
        with pytest.raises(ConfigError, match="here: entries need names that differ"):
            check_names("here", names)
    check_wrapped(Entry("a", nn.Identity()))
    with pytest.raises(ConfigError, match="'a' is no wrapped model; use wrap first"):
        check_wrapped(Entry("a", nn.Identity(), NeverExit()))
