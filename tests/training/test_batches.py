"""Batches in every form that users have become one: data, places, names."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError, ShapeError
from exitkit.training.batches import (
    DATA_KEYS,
    LABEL_KEYS,
    Example,
    split_batch,
    split_labelled,
    to_device,
)

X, Y = torch.randn(3, 2), torch.arange(3)


@pytest.mark.parametrize("key", DATA_KEYS)
def test_data_are_found_under_any_of_their_names(key):
    data, extras, named = split_batch({"word": "a", key: X, "cond": Y}, "Task")
    assert data is X and extras == () and named == {"word": "a", "cond": Y}


def test_conditions_follow_by_place_and_get_the_names_they_are_given():
    assert split_batch((X, Y, {"z": 1}), "Task") == (X, (Y,), {"z": 1})
    other = Y + 1
    assert split_batch((X, Y, other), "Task", (None, "label")) == (X, (), {"label": other})
    assert split_batch((X, Y), "Task", ()) == (X, (), {})
    with pytest.raises(ConfigError, match="Task: the batch has no 'text'"):
        split_batch((X, Y), "Task", ("label", "text"))
    with pytest.raises(ShapeError, match="2 rows where the data have 3"):
        split_batch((X, Y[:2]), "Task")


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_labels_are_found_and_become_whole_numbers_of_64_bits(key):
    data, label, named = split_labelled({"image": X, key: Y.int(), "id": 4}, "Task")
    assert data is X and label.dtype == torch.int64 and label.tolist() == [0, 1, 2]
    assert named == {"id": 4}


def test_named_tuples_and_the_like_stay_what_they_are():
    kept = torch.Size([1, 2])
    moved = to_device({"a": [X, (Y,)], "b": kept, "c": "word"}, "meta")
    assert moved["a"][0].is_meta and moved["a"][1][0].is_meta
    assert moved["b"] is kept and moved["c"] == "word" and not X.is_meta


def test_example_moves_everything():
    example = Example((X, "text", [torch.zeros(2)]), {"a": {"b": torch.ones(1)}}, Y)
    moved = example.to("meta")
    assert moved.args[0].is_meta and moved.args[2][0].is_meta and moved.target.is_meta
    assert moved.kwargs["a"]["b"].is_meta and moved.args[1] == "text"
    assert not example.args[0].is_meta
