"""Finished exits in a folder, with a record of what they were fitted with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from exitkit.errors import CheckpointError
from exitkit.model import ExitModel

RECORD = "fit.json"
"""File beside finished exits that says what they were fitted with."""
_NO_MATTER = ("callback", "checkpoints", "progress")
"""Arguments of `fit` that change no weight."""


def checkpoints_of(place: Path) -> Path:
    """Where the checkpoints of an unfinished fit lie, beside the folder of its exits."""
    return place.with_name(f"{place.name}.checkpoints")


def keep(model: ExitModel, place: Path, settings: dict[str, Any]) -> None:
    """Saves finished exits with the settings of their fit, and drops its checkpoints.

    Arguments:
        model: The fitted model.
        place: Folder of these exits.
        settings: What they were fitted with.
    """
    place.mkdir(parents=True, exist_ok=True)
    (place / RECORD).write_text(json.dumps(_plain(settings)))
    model.save_pretrained(place)
    shutil.rmtree(checkpoints_of(place), ignore_errors=True)  # several times the exits' size


def is_kept(place: Path, settings: dict[str, Any]) -> bool:
    """Whether finished exits lie in a folder.

    Arguments:
        place: Folder of these exits.
        settings: What they should have been fitted with.

    Returns:
        True if they are there, False if nothing is.

    Raises:
        CheckpointError: If they are of a fit with other settings, or nothing says of which.
    """
    if not (place / "exitkit.json").is_file():
        return False
    record = place / RECORD
    was: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    asked = _plain(settings)
    differ = sorted(n for n in asked.keys() | was.keys() if asked.get(n) != was.get(n))
    if differ:
        listed = ", ".join(f"{n}={asked.get(n)!r} (was {was.get(n)!r})" for n in differ)
        raise CheckpointError(
            f"{place}: these exits are of a fit with other settings: {listed}. Pass the same "
            "settings or another folder, or delete this one to fit anew."
        )
    return True


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON, without those that change no weight."""
    told = {name: value for name, value in settings.items() if name not in _NO_MATTER}
    plain: dict[str, Any] = json.loads(json.dumps(told, default=repr))
    return plain
