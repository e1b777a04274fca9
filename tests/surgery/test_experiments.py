"""What an experiment is about."""

from __future__ import annotations

import pytest

from exitkit.surgery.experiments import Subject
from exitkit.surgery.spec import Leaf
from tests.surgery.test_boundaries import TOKENS, stages


@pytest.mark.parametrize(
    ("leaf", "may"),
    [
        (Leaf("", TOKENS, "float32", 0, moved=True), True),
        (Leaf("", TOKENS, "bfloat16", 1, moved=True), True),
        (Leaf("", TOKENS, "float32", None, moved=True), False),
        (Leaf("", TOKENS, "int64", 0, moved=True), False),
        (Leaf("", TOKENS, "float32", 0, moved=False), True),  # conditions that blocks work on
        (Leaf("", TOKENS, "float32", 0, moved=True, listed=True), False),
    ],
)
def test_only_values_of_rows_are_changed(leaf: Leaf, may: bool) -> None:
    (stage,) = stages(TOKENS)
    subject = Subject(None, None, [stage.calls], leaf)  # type: ignore[arg-type]
    assert subject.changeable(stage.calls[0], leaf) is may


def test_what_is_handed_on_as_it_came_in_is_not_changed() -> None:
    (stage,) = stages(TOKENS)
    (call,) = stage.calls
    subject = Subject(
        None,
        None,
        [stage.calls],
        call.outputs[0],
        frozenset({(call.path, call.nth, "")}),  # type: ignore[arg-type]
    )
    assert not subject.changeable(call, call.outputs[0])


def test_calls_are_those_of_all_stages_in_order() -> None:
    made = stages(*[TOKENS] * 3)
    subject = Subject(None, None, [s.calls for s in made], Leaf("", TOKENS, "float32", 0))  # type: ignore[arg-type]
    assert subject.depth == 3 and [c.path for c in subject.calls] == [s.path for s in made]
