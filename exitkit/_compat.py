"""The only file that asks what is installed, and in which version."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping
from types import ModuleType

from packaging.version import InvalidVersion, Version

from exitkit.errors import MissingExtraError


def require(module: str, extra: str, needed_for: str) -> ModuleType:
    """Imports an optional dependency.

    Arguments:
        module: Dotted name of the module.
        extra: The extra of `exitkit-torch` that installs it.
        needed_for: What the user wanted to do, as the subject of the message.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the top-level package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but broken must show its own error, not ours.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{needed_for} needs `{module.split('.')[0]}`, which is not installed. "
            f'Install it with: pip install "exitkit-torch[{extra}]"'
        ) from error


def library_of(thing: object) -> str | None:
    """The installed library that an object's class comes from.

    Arguments:
        thing: Any object, such as a backbone.

    Returns:
        Top-level name of its module, or None where that has no version: a script, a notebook.
    """
    root = type(thing).__module__.partition(".")[0]
    return root if version_of(root) is not None else None


def version_of(library: str) -> str | None:
    """The version of a library in this environment; the library is not imported.

    Arguments:
        library: Name of its top-level module, such as `timm`.

    Returns:
        What it says of itself, else the version of the distribution of that name; None if there is
        neither.
    """
    told = getattr(sys.modules.get(library), "__version__", None)
    if told is not None:
        return str(told)
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions_for(backbone: object) -> dict[str, str]:
    """Versions that decide whether saved exits mean the same: torch, exitkit, the backbone's library.

    Arguments:
        backbone: The backbone.

    Returns:
        Versions by name of the top-level module.
    """
    names = dict.fromkeys(("exitkit", "torch", library_of(backbone)))
    return {name: found for name in names if name is not None and (found := version_of(name))}


def version_conflicts(saved: Mapping[str, str]) -> list[str]:
    """Compares versions that were saved with those of this environment.

    A library conflicts if it is not here, or of another major version, or of a version that cannot
    be read and is not the same.

    Arguments:
        saved: Versions by name of the top-level module.

    Returns:
        One phrase a conflict, with both versions.
    """
    found = []
    for name, theirs in saved.items():
        mine = version_of(name)
        if mine is None:
            found.append(f"{name} {theirs}, which is not installed here")
        elif _major(mine) != _major(theirs):
            found.append(f"{name} {theirs}, here it is {mine}")
    return found


def _major(version: str) -> tuple[int, int] | str:
    try:
        parsed = Version(version)
    except InvalidVersion:
        return version
    return parsed.epoch, parsed.major
