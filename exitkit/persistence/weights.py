"""Tensors on disk: safetensors files, whole or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from exitkit.errors import CheckpointError
from exitkit.heads.build import Heads
from exitkit.heads.fitted import with_marks

HEADS, BACKBONE = "exits.safetensors", "backbone.safetensors"


def write_tensors(file: Path, module: nn.Module) -> str:
    """Writes the state of a module.

    Arguments:
        file: The file.
        module: The module.

    Returns:
        The file's SHA-256.
    """
    state = {name: t.detach().contiguous().clone() for name, t in module.state_dict().items()}
    save_file(state, file)
    file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it private to its owner
    return sum_of(file)


def sum_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def tensors_for(
    file: Path, module: nn.Module, what: str, sums: Mapping[str, str]
) -> dict[str, Tensor]:
    """Reads a safetensors file for a module, all or nothing.

    Arguments:
        file: The file.
        module: The module, which is not changed.
        what: Name of the module, for the message.
        sums: SHA-256 of files by name, as far as they are known.

    Returns:
        A state that the module can load.

    Raises:
        CheckpointError: If it is missing, damaged, of another module, or not what was saved.
    """
    try:
        state = load_file(file)
        altered = sums.get(file.name) not in (None, sum_of(file))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is not there. Pass a folder written by model.save_pretrained(path)."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short, or no safetensors file ({error}). Copy it again, or save the "
            "model again."
        ) from error
    own = module.state_dict()
    state = with_marks(state, own) if isinstance(module, Heads) else state
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{file} does not fit the {what}: missing {missing[:3]}, unknown {extra[:3]}, other "
            f"shapes {sorted(shapes)[:3]}. Wrap with the same config and example_inputs as when "
            "they were saved."
        )
    if altered:
        raise CheckpointError(
            f"{file} was altered since it was saved: its SHA-256 is not the one in exitkit.json. Copy the "
            "folder again, or save the model again."
        )
    return {n: state[n].to(own[n].dtype) for n in own}
