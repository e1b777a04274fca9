"""Gives a network, or the denoisers of a pipeline, their saved exits back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import nn

from exitkit.errors import AlreadyWrappedError, CheckpointError
from exitkit.model import ExitModel
from exitkit.persistence.fingerprint import structure, values
from exitkit.persistence.hub import local_folder
from exitkit.persistence.settings import Components, read_settings
from exitkit.pipelines.capture import denoisers, first_calls
from exitkit.pipelines.enabling import installed, is_pipeline
from exitkit.pipelines.routes import wrapped_in
from exitkit.surgery.adapter import Adapter


@overload
def load(
    target: nn.Module,
    path: str | Path,
    *,
    revision: str | None = ...,
    example_inputs: Any = ...,
    adapter: Adapter | None = ...,
    check_weights: bool = ...,
) -> ExitModel: ...


@overload
def load(
    target: Any,
    path: str | Path,
    *,
    revision: str | None = ...,
    example_inputs: Any = ...,
    adapter: Adapter | None = ...,
    check_weights: bool = ...,
) -> Any: ...


def load(
    target: Any,
    path: str | Path,
    *,
    revision: str | None = None,
    example_inputs: Any = None,
    adapter: Adapter | None = None,
    check_weights: bool = True,
) -> Any:
    """Gives a network, or the denoisers of a pipeline, their saved exits back, ready to run.

    Blocks are found anew, by running the network on a call of the kind that it was wrapped with.

    Arguments:
        target: The network or the diffusers pipeline that the exits were saved from, with the same weights.
        path: Folder written by `model.save_pretrained`, or a repository of the hub, owner/name, written by
            `model.push_to_hub`.
        revision: Branch, tag or commit of the repository.
        example_inputs: As for `wrap`, where the call of then cannot be made again.
        adapter: As for `wrap`.
        check_weights: Refuse other weights than those that the exits were fitted on.

    Returns:
        What `wrap` returned, with its policy and its calibration.

    Raises:
        CheckpointError: If the folder is damaged or of another backbone, which is left as it was.
        AlreadyWrappedError: If the backbone is wrapped already.
    """
    if not is_pipeline(target):
        if not isinstance(target, nn.Module):
            raise CheckpointError(
                f"load: expected a network or a diffusers pipeline, got {type(target).__name__}. For "
                "example ek.load(pipe, path)."
            )
        return ExitModel.from_pretrained(
            target,
            path,
            revision=revision,
            example_inputs=example_inputs,
            adapter=adapter,
            check_weights=check_weights,
        )
    folder = local_folder(path, revision)
    places = _places(target, folder)
    networks = denoisers(target, tuple(places))
    for name, network in networks.items():
        if wrapped_in(network) is not None:
            raise AlreadyWrappedError(
                f"load: {name} of this {type(target).__name__} is wrapped already. ek.unwrap(pipe) takes its "
                "exits out."
            )
    calls: Mapping[str, Any] = {}
    if example_inputs is not None:
        calls = first_calls(target, networks, example_inputs)
    models = installed(
        target,
        places,
        lambda name: ExitModel.from_pretrained(
            getattr(target, name, networks[name]),
            places[name],
            example_inputs=calls.get(name),
            adapter=adapter,
            check_weights=check_weights,
        ),
    )
    several = isinstance(read_settings(folder), Components)
    return models if several else next(iter(models.values()))


def _places(pipe: Any, folder: Path) -> dict[str, Path]:
    """Folder of each denoiser that has saved exits."""
    settings = read_settings(folder)
    known = denoisers(pipe)
    if isinstance(settings, Components):
        missing = [name for name in settings.components if name not in known]
        if missing:
            raise CheckpointError(
                f"{folder} holds the exits of {' and '.join(settings.components)}, and this "
                f"{type(pipe).__name__} has no denoiser {' or '.join(missing)} (denoisers: "
                f"{', '.join(known)}). Pass the pipeline that was wrapped."
            )
        return {name: folder / name for name in settings.components}
    fitting = [
        n for n, network in known.items() if structure(network) == settings.backbone.structure
    ]
    if len(known) == 1 or not fitting:
        return {next(iter(fitting or known)): folder}
    same = [name for name in fitting if values(known[name]) == settings.backbone.values]
    return {(same or fitting)[0]: folder}
