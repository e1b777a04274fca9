"""Where carried exits land, and which boundaries carry them if nobody says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from exitkit.config import OutputConfig
from exitkit.errors import BoundaryError
from exitkit.heads import output_kind
from exitkit.surgery.spec import Boundary, Leaf
from tests.heads.specs import FEATURES, LATE
from tests.heads.test_kinds import site

PLAN = SimpleNamespace(class_name="Net", num_stages=9)
AT = Boundary(
    2,
    "blocks.1",
    "Block",
    Leaf("[0]", (2, 8, 4, 4), "float32", 0),
    FEATURES,
    True,
    7,
    0.2,
    True,
    "",
    completes=True,
    resume=9,
)
KIND = output_kind("carried")


def config(resume):
    return OutputConfig(kind="carried", resume=resume)


@pytest.mark.parametrize(
    ("resume", "able", "want"),
    [("auto", {}, 9), ("auto", {"resume": 6}, 6), ("tail", {}, 9), ("mirror", {}, 6)],
)
def test_landings(resume, able, want):
    assert KIND.landing(PLAN, replace(AT, **able), config(resume)) == want


@pytest.mark.parametrize(
    ("resume", "unable", "why"),
    [
        ("mirror", {"mirror": None}, "no later stage takes its skips"),
        ("tail", {"completes": False}, "the tail reads what passed-over stages gave"),
        ("auto", {"resume": None, "no_resume": "it draws numbers"}, "it draws numbers"),
    ],
)
def test_no_place_to_resume_is_refused_with_the_reason(resume, unable, why):
    with pytest.raises(BoundaryError, match=rf"'blocks.1' can resume nowhere: {why}.*'relative'"):
        KIND.landing(PLAN, replace(AT, **unable), config(resume))


def test_default_exits_are_those_that_can_resume():
    mirrored, landing = replace(AT, resume=6, completes=False), replace(AT, mirror=None)
    neither = replace(AT, completes=False, mirror=None, resume=None)
    every = [mirrored, landing, neither]
    assert KIND.default_exits(PLAN, every, config("auto")) == [mirrored, landing]
    assert KIND.default_exits(PLAN, every, config("mirror")) == [mirrored]
    assert KIND.default_exits(PLAN, every, config("tail")) == [landing]
    # With none that can, all: the refusal then names the first.
    assert KIND.default_exits(PLAN, [neither], config("auto")) == [neither]
    assert output_kind("tail").default_exits(PLAN, every, OutputConfig()) == every


def test_a_blank_state_has_the_shapes_of_a_row():
    state = KIND.blank_state(site(LATE, False, FEATURES), torch.zeros(1, dtype=torch.bfloat16))
    assert state.last.h.shape == (1, *FEATURES.shape) and state.last.v.shape == (1, *LATE.shape)
    assert state.last.h.dtype == torch.bfloat16
