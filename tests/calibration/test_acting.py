"""A policy for a while."""

from __future__ import annotations

import pytest
import torch

from exitkit.calibration.acting import acting
from exitkit.policies import FixedExit, NeverExit
from tests.calibration import models


def test_the_policy_comes_back_also_after_an_error() -> None:
    model = models.relative()
    with pytest.raises(ZeroDivisionError), acting(model, FixedExit(2)):
        assert model.policy == FixedExit(2)
        raise ZeroDivisionError
    assert model.policy == NeverExit()


def test_what_has_no_policy_stays_as_it_is() -> None:
    bare = torch.nn.Linear(2, 2)
    with acting(bare, FixedExit(2)):
        assert not hasattr(bare, "policy")
