"""exitkit.json is checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exitkit.errors import CheckpointError
from exitkit.persistence.settings import Components, Settings, read_settings

GOOD: dict[str, Any] = {
    "format": 1,
    "config": {},
    "policy": {"name": "never"},
    "exits": ["blocks.0"],
    "backbone": {"class": "Net", "structure": "12", "values": "34"},
}


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "exitkit.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_what_is_well_is_read(tmp_path: Path) -> None:
    found = read_settings(written(tmp_path, json.dumps(GOOD)))
    assert isinstance(found, Settings)
    assert found.backbone.class_name == "Net" and found.example is None and found.sums == {}
    several = json.dumps({"format": 1, "components": ["a", "b"]})
    assert read_settings(written(tmp_path, several)) == Components(components=("a", "b"))
    whole = found.model_dump(mode="json", by_alias=True)
    assert read_settings(written(tmp_path, json.dumps(whole))) == found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"\x89PNG\xff\x00\xfe", r"exitkit.json is binary, expected JSON.*Save the model again"),
        ("", r"exitkit.json is damaged or cut short.*Save the model again"),
        (json.dumps(GOOD)[:-9], r"exitkit.json is damaged or cut short"),
        ("[1, 2]", r"expected a mapping, found a list"),
        ('"text"', r"expected a mapping, found a str"),
        ("{}", r"has format None, this version reads 1"),
        (json.dumps(GOOD | {"format": 2}), r"has format 2, this version reads 1"),
        (json.dumps(GOOD | {"config": [1]}), r"config: .*dictionary, found \[1\]"),
        (json.dumps(GOOD | {"policy": ["never"]}), r"policy: .*dictionary, found \['never'\]"),
        (json.dumps(GOOD | {"exits": {"a": 1}}), r"exits: .*tuple, found \{'a': 1\}"),
        (json.dumps(GOOD | {"backbone": "Net"}), r"backbone: .*found 'Net'"),
        (json.dumps(GOOD | {"backbone": {"class": "Net"}}), r"backbone.structure: Field required"),
        (json.dumps(GOOD | {"other": "x" * 99}), r"other: Extra inputs.*found 'xxx.*\.\.\."),
        (json.dumps({"format": 1, "components": "a"}), r"components: .*found 'a'"),
    ],
)
def test_what_is_not_is_told(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_settings(written(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


def test_places_without_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"exitkit.json is not there.*save_pretrained"):
        read_settings(tmp_path)
    with pytest.raises(CheckpointError, match=r"exitkit.json is not there"):
        read_settings(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CheckpointError, match=r"file is a file.*Pass the folder"):
        read_settings(file)
    (tmp_path / "exitkit.json").mkdir()
    with pytest.raises(CheckpointError, match=r"exitkit.json could not be read"):
        read_settings(tmp_path)
