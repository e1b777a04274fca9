"""Checkpoints on disk: complete or not there, and refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exitkit.errors import CheckpointError
from exitkit.training import checkpoints
from exitkit.training.checkpoints import existing, load, put, save


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(4, 6, generator=generator)
    # Views share memory, and one is not contiguous; a count has no axes.
    return {"a/x": whole[:2], "a/y": whole[1:].t(), "n": torch.tensor(3), "h": whole[0].bfloat16()}


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    state = {"step": 7, "history": [{"total": 0.1 + 0.2}], "scaler": None}
    path = save(tmp_path / "run", 7, tensors(), state)
    found = load(tmp_path / "run")
    assert found is not None and found.path == path == tmp_path / "run" / "step-00000007"
    assert found.state == {"version": checkpoints.VERSION, **state}
    assert found.tensors.keys() == tensors().keys()
    for name, want in tensors().items():
        assert found.tensors[name].dtype == want.dtype
        assert torch.equal(found.tensors[name], want)


def test_the_newest_counts_and_old_ones_go(tmp_path: Path) -> None:
    for step in (2, 10, 9, 100):
        save(tmp_path, step, tensors(step), {"step": step})
    assert [path.name for path in existing(tmp_path)] == ["step-00000010", "step-00000100"]
    found = load(tmp_path)
    assert found is not None and found.state["step"] == 100
    assert torch.equal(found.tensors["a/x"], tensors(100)["a/x"])
    save(tmp_path, 100, tensors(1), {"step": 100}, keep=1)  # written anew
    assert [path.name for path in existing(tmp_path)] == ["step-00000100"]
    again = load(tmp_path)
    assert again is not None and torch.equal(again.tensors["a/x"], tensors(1)["a/x"])


def test_nothing_is_read_where_nothing_is(tmp_path: Path) -> None:
    assert load(tmp_path) is None and existing(tmp_path / "nowhere") == []
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    assert existing(tmp_path) == [] and load(tmp_path) is None


@pytest.mark.parametrize("broken", ["save_file", "_flush"])
def test_a_write_that_dies_leaves_the_one_before(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, tensors(), {"step": 1})

    def dies(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, broken, dies)
        with pytest.raises(CheckpointError, match="step 2 could not be written: .*full") as caught:
            save(tmp_path, 2, tensors(2), {"step": 2})
    assert isinstance(caught.value.__cause__, OSError)
    found = load(tmp_path)
    assert found is not None and found.state["step"] == 1
    save(tmp_path, 3, tensors(3), {"step": 3})
    assert not list(tmp_path.glob(".partial-*")), "what a dead write left is never removed"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("state.json", lambda text: text[:-5], "damaged"),
        ("tensors.safetensors", lambda text: text[:40], "damaged"),
        ("state.json", lambda text: text.replace(b'"version": 1', b'"version": 99'), "version 99"),
    ],
)
def test_damage_is_told_with_what_to_do(
    file: str, change: Any, message: str, tmp_path: Path
) -> None:
    save(tmp_path, 1, tensors(), {"step": 1})
    path = save(tmp_path, 2, tensors(), {"step": 2}) / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"step-00000002.*{message}.*go on from step-0+1"):
        load(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    (save(tmp_path, 2, tensors(), {"step": 2}) / "tensors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged.*Delete it, or pass resume=False"):
        load(tmp_path)


def test_put_copies_by_name_or_refuses_without_a_change(tmp_path: Path) -> None:
    mine = {"a": torch.zeros(2), "b": torch.zeros(3)}
    given = {"a": torch.ones(2), "b": torch.arange(3.0)}
    for wrong in (
        {"a": torch.ones(2)},
        {**given, "c": torch.ones(1)},
        {**given, "b": torch.ones(4)},
    ):
        with pytest.raises(
            CheckpointError, match=r"another model or config; 1 tensors differ.*: [bc]"
        ):
            put(mine, wrong, tmp_path)
        assert not any(bool(tensor.any()) for tensor in mine.values())
    kept = mine["b"]
    put(mine, given, tmp_path)
    assert mine["b"] is kept and torch.equal(kept, given["b"]) and bool((mine["a"] == 1).all())


def test_the_state_is_plain_text(tmp_path: Path) -> None:
    path = save(tmp_path, 5, tensors(), {"step": 5})
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]
    assert json.loads((path / "state.json").read_text())["step"] == 5
