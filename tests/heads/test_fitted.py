"""The mark of fitted heads: set, read, moved, copied, saved, and what a state without marks means."""

from __future__ import annotations

import copy

import pytest
import torch

from exitkit.heads import UncertaintyHead
from exitkit.heads.fitted import Fitted, with_marks
from tests.heads.specs import TOKENS


def test_a_mark_is_set_once_and_for_all() -> None:
    module = Fitted()
    assert not module.is_fitted
    module.mark()
    assert module.is_fitted and bool(module.fitted)
    module.mark()
    assert module.is_fitted


def test_what_the_host_has_read_follows_the_buffer() -> None:
    module = Fitted()
    assert not module.is_fitted
    module.fitted.fill_(True)  # as a checkpoint does
    assert module.is_fitted
    module.fitted = torch.zeros((), dtype=torch.bool)  # as moving to a device does
    assert not module.is_fitted
    assert module.half().fitted.dtype == torch.bool


def test_copies_have_marks_of_their_own() -> None:
    module = Fitted()
    assert not module.is_fitted
    other = copy.deepcopy(module)
    other.mark()
    assert other.is_fitted and not module.is_fitted
    assert copy.deepcopy(other).is_fitted


def test_a_mark_can_be_read_where_it_has_no_version_or_no_value() -> None:
    with torch.inference_mode():
        module = Fitted()
    assert not module.is_fitted
    assert not Fitted().to("meta").is_fitted


@pytest.mark.parametrize("fitted", [False, True])
def test_marks_are_saved(fitted: bool) -> None:
    head, fresh = UncertaintyHead(TOKENS, (10,), 0), UncertaintyHead(TOKENS, (10,), 0)
    if fitted:
        head.mark()
    assert "fitted" in head.state_dict()
    fresh.load_state_dict(head.state_dict())
    assert fresh.is_fitted is fitted


def test_a_state_without_marks_is_of_fitted_heads() -> None:
    head = UncertaintyHead(TOKENS, (10,), 0)
    old = {name: value for name, value in head.state_dict().items() if name != "fitted"}
    head.load_state_dict(old)
    assert head.is_fitted and "fitted" not in old
    filled = with_marks(old, head.state_dict())
    assert filled.keys() == head.state_dict().keys() and bool(filled["fitted"])
    # What a state does say holds.
    said = {**old, "fitted": torch.tensor(False)}
    assert not bool(with_marks(said, head.state_dict())["fitted"])
