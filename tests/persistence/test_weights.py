"""Tensors come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exitkit.errors import CheckpointError
from exitkit.persistence.weights import sum_of, tensors_for, write_tensors


def saved(folder: Path) -> tuple[Path, nn.Module, dict[str, str]]:
    file, module = folder / "exits.safetensors", nn.Linear(3, 2)
    return file, module, {file.name: write_tensors(file, module)}


def test_round_trip(tmp_path: Path) -> None:
    file, module, sums = saved(tmp_path)
    other = nn.Linear(3, 2)
    other.load_state_dict(tensors_for(file, other, "heads", sums))
    assert torch.equal(other.weight, module.weight) and torch.equal(other.bias, module.bias)
    assert file.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    half = tensors_for(file, nn.Linear(3, 2).half(), "heads", {})
    assert {t.dtype for t in half.values()} == {torch.float16}


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    file, module, sums = saved(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"exits.safetensors was altered.*SHA-256"):
        tensors_for(file, module, "heads", sums)
    assert tensors_for(file, module, "heads", {})  # the control: it still reads
    assert sum_of(file) != sums[file.name]


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"PK\x03\x04" * 9, b"[1, 2]", None])
def test_files_of_another_kind(tmp_path: Path, content: bytes | None) -> None:
    file, module, sums = saved(tmp_path)
    if content is None:
        torch.save(module.state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"exits.safetensors is damaged or cut short, or no safetensors"
    ):
        tensors_for(file, module, "heads", sums)


def test_missing_files_and_other_tensors(tmp_path: Path) -> None:
    file, module, _ = saved(tmp_path)
    with pytest.raises(CheckpointError, match="other.safetensors is not there"):
        tensors_for(tmp_path / "other.safetensors", module, "heads", {})
    save_file({"weight": torch.ones(2, 2), "more": torch.ones(1)}, file)
    match = (
        r"does not fit the heads: missing \['bias'\], unknown \['more'\], other shapes \['weight'\]"
    )
    with pytest.raises(CheckpointError, match=match):
        tensors_for(file, module, "heads", {})
