"""Equality is meant bit for bit, and of everything: type, structure, constants, dtypes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from exitkit.testing.contract import ContractError, equal, require


def output() -> dict[str, Any]:
    return {"sample": torch.arange(4.0).reshape(2, 2), "pair": (torch.ones(1), 3), "note": "kept"}


def test_equal_outputs_are_equal() -> None:
    assert equal(output(), output())


@pytest.mark.parametrize(
    "change",
    [
        {"sample": torch.nextafter(output()["sample"], torch.tensor(9.0))},
        {"sample": output()["sample"].double()},
        {"sample": output()["sample"].reshape(4)},
        {"pair": (torch.ones(1), 4)},
        {"note": "lost"},
        {"more": torch.ones(1)},
    ],
    ids=["last bit", "dtype", "shape", "constant", "word", "key"],
)
def test_any_difference_is_one(change: dict[str, Any]) -> None:
    assert not equal(output(), {**output(), **change})


def test_another_outer_type_is_a_difference() -> None:
    assert not equal(output(), OrderedDict(output()))
    assert not equal((torch.ones(1),), [torch.ones(1)])


def test_a_broken_promise_is_an_assertion_too() -> None:
    require(True, "never shown")
    with pytest.raises(AssertionError, match="which promise"):
        require(False, "which promise")
    assert issubclass(ContractError, AssertionError)
