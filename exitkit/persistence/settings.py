"""What stands in exitkit.json, checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exitkit.errors import CheckpointError

CONFIG = "exitkit.json"
CALIBRATION = "calibration.json"
FORMAT = 1


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Fingerprint(_Read):
    """The backbone that exits were fitted on.

    Attributes:
        class_name: Its class.
        structure: Hash of the names and shapes of its state.
        values: Hash of some of its weights; None where they were not at hand.
        dtype: The dtype of its floating-point weights.
        adapters: Names of the LoRA adapters that were loaded in it.
        base: Its name on a hub or on disk, if it knows one.
    """

    class_name: str = Field(alias="class")
    structure: str
    values: str | None = None
    dtype: str | None = None
    adapters: tuple[str, ...] = ()
    base: str | None = None


class Settings(_Read):
    """exitkit.json of one wrapped model.

    Attributes:
        format: Version of the layout of the folder.
        config: The config of the exits.
        policy: The serialised policy.
        exits: Path of each exit.
        backbone: The backbone.
        example: The call that it was wrapped with.
        fitted: The sampler that the exits were fitted on.
        predicts: What the prediction was taken for, in diffusers' words.
        sizes: Smallest and largest size of the samples of the fit, by axis.
        versions: Versions of torch, exitkit and the backbone's library.
        sums: SHA-256 of each file of weights.
    """

    format: Literal[1] = 1
    config: dict[str, Any]
    policy: dict[str, Any]
    exits: tuple[str, ...]
    backbone: Fingerprint
    example: dict[str, Any] | None = None
    fitted: dict[str, Any] | None = None
    predicts: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    versions: dict[str, str] = {}
    sums: dict[str, str] = {}


class Components(_Read):
    """exitkit.json of several denoisers of a pipeline, each in a folder of its name.

    Attributes:
        format: Version of the layout of the folder.
        components: Their names.
    """

    format: Literal[1] = 1
    components: tuple[str, ...]


def read_settings(folder: Path) -> Settings | Components:
    """Reads exitkit.json.

    Arguments:
        folder: Folder written by `save_pretrained`.

    Returns:
        What it says, of one model or of several.

    Raises:
        CheckpointError: If it is missing, damaged, or of another version.
    """
    file = folder / CONFIG
    told = read_json(file)
    if told.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} has format {told.get('format')}, this version reads {FORMAT}. Save it again with this "
            "version of exitkit."
        )
    kind = Components if "components" in told else Settings
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {_short(e['input'])}"
            for e in error.errors()
        )
        raise CheckpointError(
            f"{file} is damaged ({problems}). Save the model again, or copy the folder anew."
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Arguments:
        file: The file.

    Returns:
        The mapping.

    Raises:
        CheckpointError: If it is missing, or something else.
    """
    if file.parent.exists() and not file.parent.is_dir():
        raise CheckpointError(
            f"{file.parent} is a file, and exits are saved as a folder. Pass the folder that "
            "model.save_pretrained(path) has written."
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is not there. Pass a folder written by model.save_pretrained(path), or by "
            "`exitkit fit ... --out FOLDER`."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is binary, expected JSON ({error}). Save the model again."
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}). Save the model again."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{file} could not be read ({error}). Check who may read it."
        ) from error
    if not isinstance(told, dict):
        raise CheckpointError(
            f"{file} is damaged: expected a mapping, found a {type(told).__name__}. Save the model again."
        )
    return told


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
