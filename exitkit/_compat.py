"""The only file that asks what is installed, and in which version."""

from __future__ import annotations

import importlib
from types import ModuleType

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
