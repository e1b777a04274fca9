"""What an experiment is about."""

from __future__ import annotations

import pytest

from exitkit.surgery.experiments import Subject, changeable
from exitkit.surgery.spec import Leaf
from tests.surgery.test_boundaries import TOKENS, stages


@pytest.mark.parametrize(
    ("leaf", "may"),
    [
        (Leaf("", TOKENS, "float32", 0, moved=True), True),
        (Leaf("", TOKENS, "bfloat16", 1, moved=True), True),
        (Leaf("", TOKENS, "float32", None, moved=True), False),
        (Leaf("", TOKENS, "int64", 0, moved=True), False),
        (Leaf("", TOKENS, "float32", 0, moved=False), False),
        (Leaf("", TOKENS, "float32", 0, moved=True, listed=True), False),
    ],
)
def test_only_values_of_rows_on_the_noisy_path_are_changed(leaf: Leaf, may: bool) -> None:
    assert changeable(leaf) is may


def test_calls_are_those_of_all_stages_in_order() -> None:
    made = stages(*[TOKENS] * 3)
    subject = Subject(None, None, [s.calls for s in made], Leaf("", TOKENS, "float32", 0))  # type: ignore[arg-type]
    assert subject.depth == 3 and [c.path for c in subject.calls] == [s.path for s in made]
