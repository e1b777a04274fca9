"""What is written can be read back, and is known by its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import exitkit as ek
from exitkit.errors import CheckpointError
from exitkit.persistence.read import Saved
from exitkit.persistence.settings import Components, read_settings
from exitkit.persistence.write import FILES, fingerprint, write_components
from tests.backbones import case


@pytest.fixture(scope="module")
def model() -> Any:
    args, _ = case("uvit").inputs(2)
    return ek.wrap(case("uvit").make(), "relative", example_inputs=args)


def test_one_model(model: Any, tmp_path: Path) -> None:
    model._exits().write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= set(FILES)
    saved = Saved.read(tmp_path)
    assert saved.config == model.exit_config and saved.policy == model.policy
    assert saved.settings.backbone == fingerprint(model.backbone)
    assert set(saved.settings.sums) == {"exits.safetensors"}


def test_several_models(model: Any, tmp_path: Path) -> None:
    write_components(tmp_path, {"one": model._exits(), "two": model._exits()})
    assert read_settings(tmp_path) == Components(components=("one", "two"))
    for name in ("one", "two"):
        assert Saved.read(tmp_path / name).policy == model.policy
    with pytest.raises(CheckpointError, match="one and two"):
        Saved.read(tmp_path)


def test_json_is_strict_text(model: Any, tmp_path: Path) -> None:
    model._exits().write(tmp_path)
    text = (tmp_path / "exitkit.json").read_text()
    assert text.endswith("}\n") and json.loads(text)["format"] == 1
