"""Heads, config and policy on disk, and the fingerprint that ties them to a backbone."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from exitkit._compat import version_conflicts, versions_for
from exitkit.config import ExitConfig, parse_config
from exitkit.errors import BoundaryError, CheckpointError
from exitkit.execution.gate import check_ungated
from exitkit.heads.build import Heads
from exitkit.heads.fitted import with_marks
from exitkit.policies import Calibration
from exitkit.surgery.spec import Plan

CONFIG, HEADS, BACKBONE = "exitkit.json", "heads.safetensors", "backbone.safetensors"
CALIBRATION = "calibration.json"
FORMAT = 1


def structure(backbone: nn.Module) -> str:
    """Hash of a backbone's class and of the names, shapes and types of its state."""
    digest = hashlib.sha256(type(backbone).__name__.encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    return digest.hexdigest()[:16]


def values(backbone: nn.Module) -> str:
    """Hash of 16 evenly spread entries of every tensor of a backbone, as float32."""
    digest = hashlib.sha256()
    for tensor in backbone.state_dict().values():
        if not isinstance(tensor, Tensor) or not tensor.numel():
            continue
        flat = tensor.detach().flatten()
        index = torch.linspace(0, flat.numel() - 1, 16, device=flat.device).long()
        digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save(
    path: str | Path,
    *,
    heads: nn.Module,
    backbone: nn.Module,
    config: ExitConfig,
    policy: dict[str, Any],
    exits: list[str],
    fitted: dict[str, Any] | None = None,
) -> None:
    """Writes heads, config and policy to a folder; a fine-tuned backbone as well.

    Arguments:
        path: Folder; made if it is not there.
        heads: The heads.
        backbone: The backbone, for its fingerprint, and its weights if it was trained.
        config: The config.
        policy: The serialised policy.
        exits: Path of each exit.
        fitted: Description of the sampler that the exits were fitted on, or None.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "policy": policy,
        "exits": exits,
        "fitted": fitted,
        "versions": versions_for(backbone),
        "backbone": {
            "class": type(backbone).__name__,
            "structure": structure(backbone),
            "values": values(backbone),
        },
    }
    state = {name: t.detach().contiguous().clone() for name, t in heads.state_dict().items()}
    save_file(state, folder / HEADS)
    if config.loss.train_backbone:
        weights = {n: t.detach().contiguous().clone() for n, t in backbone.state_dict().items()}
        save_file(weights, folder / BACKBONE)
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def save_calibration(path: str | Path, calibration: Calibration | None) -> None:
    """Writes what a policy was calibrated to; where there is nothing, an older note goes.

    Arguments:
        path: Folder written by `save`.
        calibration: The calibration of the policy in use, or None.
    """
    file = Path(path) / CALIBRATION
    if calibration is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(calibration.to_dict(), indent=2) + "\n")


def read_calibration(path: str | Path) -> Calibration | None:
    """Reads what the saved policy was calibrated to.

    Arguments:
        path: Folder written by `save`.

    Returns:
        The calibration, or None if none was saved.

    Raises:
        CheckpointError: If the file is damaged.
    """
    file = Path(path) / CALIBRATION
    if not file.is_file():
        return None
    try:
        return Calibration.from_dict(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}). Delete it, and calibrate the model again."
        ) from error


def read_config(path: str | Path) -> tuple[ExitConfig, dict[str, Any]]:
    """Reads the description of saved heads.

    Arguments:
        path: Folder written by `save`.

    Returns:
        The config and the whole description.

    Raises:
        CheckpointError: If the folder holds no readable description.
    """
    file = Path(path) / CONFIG
    try:
        described = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is not there. Pass a folder written by model.save_pretrained(path)."
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is damaged ({error}). Save the model again.") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} has format {described.get('format') if isinstance(described, dict) else None}, "
            f"this version reads {FORMAT}. Save it again with this version of exitkit."
        )
    return parse_config(described["config"]), described


def read_for(
    backbone: nn.Module, path: str | Path, check_weights: bool
) -> tuple[ExitConfig, dict[str, Any]]:
    """Reads the description of saved heads, and refuses a backbone that cannot take them.

    Arguments:
        backbone: The backbone at hand.
        path: Folder written by `save`.
        check_weights: Whether the backbone must be the one that was saved.

    Returns:
        What `read_config` returns, which raises as it does; `AlreadyWrappedError` for a wrapped backbone.
    """
    config, described = read_config(path)
    if check_weights:
        check_backbone(backbone, described, path)
    check_ungated(backbone)
    warn_versions(described, path)
    return config, described


def check_backbone(backbone: nn.Module, described: dict[str, Any], path: str | Path) -> None:
    """Refuses heads that were fitted on another backbone.

    Arguments:
        backbone: The backbone at hand.
        described: What was saved.
        path: Where from, for the message.

    Raises:
        CheckpointError: If class, state or weights differ.
    """
    saved = described["backbone"]
    trained = described["config"]["loss"]["train_backbone"]
    if saved["structure"] != structure(backbone):
        raise CheckpointError(
            f"{path}: these heads belong to a {saved['class']} with other modules or shapes than this "
            f"{type(backbone).__name__} (structure {structure(backbone)}, saved "
            f"{saved['structure']}). Pass the backbone that was wrapped when they were fitted."
        )
    if not trained and saved["values"] != values(backbone):
        raise CheckpointError(
            f"{path}: these heads belong to a {saved['class']} with other weights (values "
            f"{values(backbone)}, saved {saved['values']}). Load the weights the heads were fitted "
            "on, or pass check_weights=False if you know that they fit."
        )


def warn_versions(described: dict[str, Any], path: str | Path) -> None:
    """Warns where saved exits come from libraries that are not here, or of another major version.

    Arguments:
        described: What was saved.
        path: Where from, for the message.
    """
    conflicts = version_conflicts(described.get("versions") or {})
    if conflicts:
        warnings.warn(
            f"{path}: these exits were saved with {'; '.join(conflicts)}. Compare the model's outputs "
            "with those of then, or fit and save the exits again.",
            stacklevel=4,
        )


def saved_heads(
    plan: Plan, config: ExitConfig, described: dict[str, Any], path: str | Path
) -> Heads:
    """Makes heads at the exits that were saved, whichever ones the config would choose today.

    Arguments:
        plan: Plan of the backbone at hand.
        config: The saved config.
        described: What was saved.
        path: Where from, for the message.

    Returns:
        The heads, not loaded yet.

    Raises:
        CheckpointError: If the backbone has no such exit.
    """
    try:
        return Heads(plan, config.model_copy(update={"exits": tuple(described["exits"])}))
    except BoundaryError as error:
        raise CheckpointError(
            f"{path}: an exit that was saved is not there ({error}). Pass example_inputs and the "
            "adapter that the backbone was wrapped with when its heads were fitted."
        ) from error


def load_weights(
    path: str | Path, heads: nn.Module, backbone: nn.Module, config: ExitConfig
) -> None:
    """Loads saved heads, and the backbone that was trained with them.

    Arguments:
        path: Folder written by `save`.
        heads: The heads.
        backbone: The backbone.
        config: The saved config.

    Raises:
        CheckpointError: If a file is missing, damaged, or does not fit.
    """
    load_tensors(Path(path) / HEADS, heads, "heads")
    if config.loss.train_backbone:
        load_tensors(Path(path) / BACKBONE, backbone, "backbone")


def load_tensors(file: Path, module: nn.Module, what: str) -> None:
    """Loads a safetensors file into a module, all or nothing.

    Arguments:
        file: The file.
        module: The module.
        what: Name of the module, for the message.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not fit.
    """
    try:
        state = load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is not there. Pass a folder written by model.save_pretrained(path)."
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}). Copy it again, or save the model again."
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
    module.load_state_dict({n: state[n].to(own[n].dtype) for n in own})
