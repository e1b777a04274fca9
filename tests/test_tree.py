"""Tensors in nested values: in the order of torch's own pytrees, and put back into equal types."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.utils import _pytree

from exitkit.tree import constants, contents, copied, leaves, substitute


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass(frozen=True)
class Frozen:
    hidden: Tensor
    note: str


def nested() -> dict[str, Any]:
    x = [torch.full((2,), float(i)) for i in range(6)]
    return {
        "a": [x[0], (x[1], "word"), None],
        "b": OrderedDict(z=x[2], y=Pair(x[3], [x[4]])),
        "c": 3,
        "d": (),
        "e": x[5],
    }


def test_leaves_come_in_the_order_of_pytrees() -> None:
    value = nested()
    expected = [x for x in _pytree.tree_leaves(value) if isinstance(x, Tensor)]
    found = leaves(value)
    assert [id(t) for _, t in found] == [id(t) for t in expected]
    assert [p for p, _ in found] == [".a[0]", ".a[1][0]", ".b.z", ".b.y[0]", ".b.y[1][0]", ".e"]


def test_what_is_no_tensor_is_a_constant() -> None:
    assert constants(nested()) == [(".a[1][1]", "word"), (".a[2]", None), (".c", 3)]
    assert constants(torch.zeros(1)) == []


def test_each_path_replaces_one_leaf_and_nothing_else() -> None:
    value = nested()
    before = leaves(value)
    new = torch.full((2,), -1.0)
    for path, old in before:
        made = substitute(value, {path: new})
        assert [id(t) for p, t in leaves(made)] == [
            id(new) if p == path else id(t) for p, t in before
        ]
        assert _pytree.tree_structure(made) == _pytree.tree_structure(value)
        assert dict(leaves(value))[path] is old, "the value itself was changed"
    assert substitute(value, {".nowhere": new}) is value
    assert substitute(value, {".e": new})["a"] is value["a"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Transformer2DModelOutput(sample=torch.zeros(2)), ".sample"),
        (Frozen(torch.zeros(2), "kept"), ".hidden"),
        (Pair(torch.zeros(2), "kept"), "[0]"),
        (torch.zeros(2), ""),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_rebuilt_value_keeps_its_type(value: Any, path: str) -> None:
    new = torch.ones(2)
    made = substitute(value, {path: new})
    assert type(made) is type(value)
    assert [(p, id(t)) for p, t in leaves(made)] == [(path, id(new))]
    assert constants(made) == constants(value)


class Plain:
    def __init__(self, sample: Tensor, more: Any = None) -> None:
        self.sample, self.more = sample, more


class Slotted:
    __slots__ = ("sample", "unset")

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


@pytest.mark.parametrize("kind", [Plain, Slotted, lambda t: SimpleNamespace(sample=t)])
def test_objects_that_hold_a_tensor_are_walked_as_outputs(kind: Any) -> None:
    x = torch.zeros(2)
    value = kind(x)
    assert [(p, t is x) for p, t in leaves(value)] == [(".sample", True)]
    new = substitute(value, {".sample": x + 1})
    assert type(new) is type(value) and new.sample.tolist() == [1, 1] and value.sample is x
    assert leaves(value, objects=False) == [] and substitute(value, {".sample": x}) is value


def test_objects_that_hold_others_end() -> None:
    inner = Plain(torch.zeros(1))
    outer = Plain(torch.ones(1), [inner.sample, {"a": inner.sample}])
    inner.more = outer
    assert [p for p, _ in leaves(outer)] == [".sample", ".more[0]", ".more[1].a"]
    assert [p for p, _ in leaves(inner)] == [".sample"]
    assert leaves(nn.Linear(2, 2)) == [] and leaves(Plain) == []
    assert constants({"a": inner}, "x") == [("x.a", inner)]


def test_contents_are_tensors_and_all_else() -> None:
    x = torch.zeros(2)
    value = {"a": [x, 3, []], "b": SimpleNamespace(h=x), "c": None}
    assert [path for path, _ in contents(value, "v")] == ["v.a[0]", "v.a[1]", "v.b.h", "v.c"]
    assert contents(x, "x") == [("x", x)] and not contents({})


def test_a_deque_is_walked_and_copied() -> None:
    x = torch.zeros(2)
    value = deque([x, "word"], maxlen=3)
    assert leaves(value) == [("[0]", x)]
    fresh = substitute(value, {"[0]": 7})
    assert type(fresh) is deque and list(fresh) == [7, "word"] and fresh.maxlen == 3
    copied(value).pop()
    assert len(value) == 2
