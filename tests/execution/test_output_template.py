"""Outputs of forwards that ended early look like those that ran through."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from exitkit.execution.output_template import OutputTemplate
from exitkit.surgery.spec import Leaf


@dataclass
class Output:
    sample: Tensor
    note: str = "kept"


LEAF = Leaf("sample", (2, 3), "torch.float32", axis=0)


@pytest.mark.parametrize(
    ("wrapping", "inner"),
    [
        (lambda x: x, lambda out: out),
        (lambda x: (x,), lambda out: out[0]),
        (lambda x: {"sample": x, "n": 1}, lambda out: out["sample"]),
        (lambda x: Output(x), lambda out: out.sample),
    ],
)
def test_the_form_is_learned_from_one_batch_and_built_for_another(wrapping, inner):
    template = OutputTemplate.learn(wrapping(torch.randn(2, 3)), LEAF)
    built = template.build(5, torch.randn(1, 3, dtype=torch.float64))
    like = wrapping(torch.empty(5, 3))
    assert type(built) is type(like) and inner(built).shape == (5, 3)
    assert inner(built).dtype == torch.float64
    if isinstance(built, Output):
        assert built.note == "kept"


def test_rows_may_lie_behind_a_sequence():
    template = OutputTemplate.learn(torch.randn(7, 2, 3), Leaf("", (7, 2, 3), "", axis=1))
    assert template.build(5, torch.randn(2, 7, 3)).shape == (7, 5, 3)


def test_several_tensors_cannot_be_made_by_an_exit():
    assert OutputTemplate.learn((torch.zeros(2), torch.zeros(2)), LEAF) is None
    assert OutputTemplate.learn([torch.zeros(2)], Leaf("", (2,), "", axis=0, listed=True)) is None
