"""Fixed and scripted depths: the exits that a model has, and no others."""

from __future__ import annotations

import pytest

from exitkit.errors import ConfigError
from exitkit.policies import FULL, FixedExit, ScriptedExit, StepInfo


def test_a_fixed_exit_that_the_model_does_not_have_is_refused():
    for depth in (6, 7, FULL - 1):
        with pytest.raises(
            ConfigError, match=rf"depth is {depth}, and the model has 5 exits.*FULL"
        ):
            FixedExit(depth).depths(StepInfo(2, 5))
    assert FixedExit(5).depths(StepInfo(2, 5)).tolist() == [5, 5]
    assert FixedExit(FULL).depths(StepInfo(2, 5)).tolist() == [6, 6]


def test_a_script_gives_each_row_its_depth_and_fits_one_size_of_batch():
    assert ScriptedExit((1, 7, 3, FULL)).depths(StepInfo(4, 5)).tolist() == [1, 6, 3, 6]
    for batch in (3, 8):
        with pytest.raises(ConfigError, match=f"depths for 4 rows, but the batch has {batch}"):
            ScriptedExit((1, 7, 3, FULL)).depths(StepInfo(batch, 5))
