"""What `save_pretrained` leaves in a folder, and what `push_to_hub` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.errors import CheckpointError, ConfigError
from exitkit.persistence import write
from tests.backbones import case
from tests.copies import copies


@copies
def wrapped(preset: str = "relative", seed: int = 0) -> Any:
    args, _ = case("uvit").inputs(2)
    return ek.wrap(case("uvit").make(seed), preset, example_inputs=args)


def held(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_all_that_belongs_to_exits_is_there(tmp_path: Path) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path / "exits")
    assert set(held(tmp_path / "exits")) == {"README.md", "exitkit.json", "exits.safetensors"}
    told = json.loads((tmp_path / "exits" / "exitkit.json").read_text())
    assert told["exits"] == [e.path for e in model.exits]
    x, t = told["example"]["args"]
    assert x["tensor"]["shape"] == [2, 3, 8, 8] and t["tensor"]["dtype"] == "int64"
    assert told["versions"]["torch"] == torch.__version__
    assert "# Exits for UViT" in (tmp_path / "exits" / "README.md").read_text()
    wrapped("paper").save_pretrained(tmp_path / "exits")
    assert "backbone.safetensors" in held(tmp_path / "exits")
    model.save_pretrained(tmp_path / "exits")  # an old backbone does not stay behind
    assert "backbone.safetensors" not in held(tmp_path / "exits")


@pytest.mark.parametrize("name", ["write_tensors", "_write_json", "fingerprint"])
def test_a_failure_on_the_way_leaves_the_old_exits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped().save_pretrained(tmp_path / "exits")
    before = held(tmp_path / "exits")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, name, full)
    with pytest.raises(CheckpointError, match="disk is full"):
        wrapped("paper").save_pretrained(tmp_path / "exits")
    assert held(tmp_path / "exits") == before
    assert [p.name for p in tmp_path.iterdir()] == ["exits"]


def test_trained_backbones_are_pushed_only_if_that_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"weights of this UViT were trained.*include_backbone=True"
    ):
        wrapped("paper").push_to_hub("owner/exits")
    with pytest.raises(
        ConfigError, match=r"not trained with its exits.*Leave include_backbone=True"
    ):
        wrapped("relative").push_to_hub("owner/exits", include_backbone=True)
