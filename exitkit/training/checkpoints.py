"""Checkpoints of a fit: one folder a step, safetensors and JSON, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from exitkit.errors import CheckpointError
from exitkit.persistence.folder import reason

VERSION = 1
_PREFIX = "step-"
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Attributes:
        path: Its folder.
        tensors: Tensors by name, on the CPU.
        state: Everything else.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes a checkpoint and removes old ones.

    The files go to a temporary folder that is then renamed: a reader sees all of it or nothing, and
    a run that is killed while writing leaves the checkpoint before it.

    Arguments:
        folder: Folder of all checkpoints of the run.
        step: Optimiser steps done.
        tensors: Tensors by name.
        state: Everything else, as JSON.
        keep: How many checkpoints stay, at least 1.

    Returns:
        The folder of this checkpoint.

    Raises:
        CheckpointError: If it cannot be written.
    """
    try:
        return _save(folder, step, tensors, state, keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the checkpoint of step {step} could not be written: {reason(error)}. Earlier ones "
            "are as they were."
        ) from error


def _save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".partial-{step:08d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # Clones: safetensors refuses tensors that share memory.
    plain = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    save_file(plain, partial / _TENSORS)
    (partial / _STATE).write_text(json.dumps({"version": VERSION, **state}))
    for name in (_TENSORS, _STATE):
        _flush(partial / name)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _flush(folder)
    for old in existing(folder)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    for stray in folder.glob(".partial-*"):
        shutil.rmtree(stray, ignore_errors=True)
    return final


def existing(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    return sorted(p for p in found if p.is_dir() and p.name.removeprefix(_PREFIX).isdigit())


def load(folder: Path) -> Checkpoint | None:
    """Reads the newest checkpoint.

    Arguments:
        folder: Folder of all checkpoints of the run.

    Returns:
        The checkpoint, or None if there is none.

    Raises:
        CheckpointError: If it is damaged or written by another version.
    """
    found = existing(folder)
    if not found:
        return None
    path = found[-1]
    older = f"Delete this folder to go on from {found[-2].name}" if len(found) > 1 else "Delete it"
    advice = f"{older}, or pass resume=False to start anew."
    try:
        state = json.loads((path / _STATE).read_text())
        tensors = load_file(path / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged ({error}). {advice}") from error
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: written as version {state.get('version')}, expected {VERSION}. {advice}"
        )
    return Checkpoint(path, tensors, state)


@torch.no_grad()
def put(into: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
    """Copies tensors into parameters or buffers of the same names.

    Arguments:
        into: Where to, by name.
        values: What, by name.
        path: Where the values come from, for the message.

    Raises:
        CheckpointError: If names or shapes differ; the message lists the first ones.
    """
    odd = sorted(into.keys() ^ values.keys())
    odd += [n for n in into.keys() & values.keys() if into[n].shape != values[n].shape]
    if odd:
        raise CheckpointError(
            f"{path}: belongs to another model or config; {len(odd)} tensors differ in name or "
            f"shape: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}. Pass another "
            "folder, or resume=False to start anew."
        )
    for name, tensor in into.items():
        tensor.copy_(values[name])


def _flush(path: Path) -> None:
    """Brings a file (or a folder's entries) to the disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
