"""Fields are checked by their annotations: what is stored, and what is refused in which words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.policies import (
    FixedExit,
    Schedule,
    ScriptedExit,
    StepInfo,
    StepSchedule,
    TimestepSchedule,
    UncertaintyThreshold,
    policy_from_dict,
)
from exitkit.policies.fields import Depth, Edges, Fraction, NonNegative, Positive


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UncertaintyThreshold(-0.1), r"threshold must be a finite number in \[0, 1\]"),
        (lambda: UncertaintyThreshold(float("nan")), "threshold must be a finite number"),
        (lambda: UncertaintyThreshold(1.5), "got 1.5"),
        (lambda: UncertaintyThreshold("0.1"), "got '0.1'"),
        (lambda: UncertaintyThreshold(True), "got True"),
        (lambda: UncertaintyThreshold(0.1, reduction="median"), "mean, max, quantile"),
        (lambda: UncertaintyThreshold(0.1, q=2), "q must be"),
        (lambda: UncertaintyThreshold(0.1, patience=0), "patience must be a whole number"),
        (lambda: UncertaintyThreshold(0.1, patience=1.5), "patience must be a whole number"),
        (lambda: UncertaintyThreshold(0.1, patience_until=-1), "patience_until must be"),
        (lambda: UncertaintyThreshold(0.1, minimum_depth=0), "minimum_depth must be"),
        (lambda: UncertaintyThreshold(0.1, max_age=0), "max_age must be a whole number of at"),
        (lambda: UncertaintyThreshold(0.1, batch_mean=1), "batch_mean must be True or False"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((5, 0.1), (5, 0.2))), "must rise"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((5, 3),)), r"per_timestep\[0\]\[1\]"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=(5,)), "pair"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((float("inf"), 1),)), "infinite edge"),
        (lambda: FixedExit(-1), "FixedExit.depth must be a whole number of at least 0, got -1"),
        (lambda: FixedExit(True), "got True"),
        (lambda: FixedExit(2.0), "got 2.0"),
        (lambda: ScriptedExit(()), "empty"),
        (lambda: ScriptedExit((1, -2)), r"per_row\[1\] must be"),
        (lambda: ScriptedExit(3), "must be a sequence, got 3"),
        (lambda: StepSchedule(()), "empty"),
        (lambda: StepSchedule("11"), "must be a sequence"),
        (lambda: TimestepSchedule((1.0,), (1,)), "1 depths for 1 edges"),
        (lambda: TimestepSchedule((2.0, 1.0), (1, 2, 3)), "must rise, but entry 0 is 2"),
        (lambda: TimestepSchedule((float("nan"),), (1, 2)), "finite"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_odd_numbers_survive_exactly():
    policy = UncertaintyThreshold(0.1 + 0.2, per_timestep=((1 / 3, 1e-17), (999, 1)))
    back = policy_from_dict(json.loads(json.dumps(policy.to_dict())))
    assert back == policy
    assert back.per_timestep == ((1 / 3, 1e-17), (999.0, 1.0))
    assert isinstance(back.per_timestep[1][0], float)
    assert StepSchedule(np.array([3, 1])).per_step == (3, 1)
    assert json.dumps(StepSchedule(torch.tensor([3, 1])).to_dict())


@dataclass(frozen=True)
class Everything(Schedule):
    """One field of each kind."""

    fraction: Fraction = 0.5
    size: NonNegative = 1.0
    count: Positive = 1
    depth: Depth = 0
    edges: Edges = ()
    number: float = -2.0
    any_integer: int = -3
    switch: bool = False
    word: Literal["a", "b"] = "a"
    maybe: Positive | None = None
    rows: tuple[tuple[NonNegative, ...], ...] = ()
    label: str = "unchecked"
    unknown: NoSuchType = None  # noqa: F821

    name: ClassVar[str] = "everything"

    def depths(self, info: StepInfo) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("fraction", 1, 1.0),
        ("size", np.float32(0.5), 0.5),
        ("count", np.int64(3), 3),
        ("edges", [1, 2.5], (1.0, 2.5)),
        ("edges", torch.tensor([1, 2]), (1.0, 2.0)),
        ("number", 3, 3.0),
        ("any_integer", -7, -7),
        ("maybe", None, None),
        ("maybe", 2, 2),
        ("rows", [[1, 2], []], ((1.0, 2.0), ())),
        ("label", 5, 5),
        ("unknown", 5, 5),
    ],
)
def test_values_are_stored_in_their_plain_type(field, given, stored):
    value = getattr(Everything(**{field: given}), field)
    assert value == stored and type(value) is type(stored)


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("fraction", 1.01, r"a finite number in \[0, 1\], got 1.01"),
        ("size", -0.1, r"a finite number in \[0, inf\], got -0.1"),
        ("count", 0, "a whole number of at least 1, got 0"),
        ("depth", -1, "a whole number of at least 0, got -1"),
        ("edges", (2, 1), "rise, but entry 0 is 2 and entry 1 is 1"),
        ("number", float("inf"), "a finite number, got inf"),
        ("number", True, "a finite number, got True"),
        ("any_integer", 1.0, "a whole number .*got 1.0"),
        ("switch", 1, "True or False, got 1"),
        ("word", "c", "one of a, b, got 'c'"),
        ("maybe", 0, "a whole number of at least 1, got 0"),
    ],
)
def test_a_refusal_names_the_field_the_range_and_the_value(field, given, message):
    with pytest.raises(ConfigError, match=rf"^Everything\.{field} must (be )?{message}"):
        Everything(**{field: given})


def test_an_entry_that_is_refused_is_named_by_its_place():
    with pytest.raises(ConfigError, match=r"^Everything\.rows\[1\]\[0\] must be a finite number"):
        Everything(rows=[[1], [-1]])
