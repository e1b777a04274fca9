"""Every refusal of exitkit, sorted by what the user can do about it.

A message says, in this order: where (dotted path, class), what (expected and found), why it usually
happens, and what to do (a callable or an argument by name).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExitKitError(Exception):
    """Base of all errors that exitkit raises on purpose."""


class UnsupportedBackboneError(ExitKitError, TypeError):
    """The backbone has no blocks that can be skipped, or its inputs do not describe a batch."""


class TracingError(ExitKitError, RuntimeError):
    """The backbone could not be run, or run twice alike, on the example inputs."""


class BoundaryError(ExitKitError, ValueError):
    """An exit was named that the backbone does not have."""


class PlanMismatchError(ExitKitError, ValueError):
    """Two views of the backbone disagree, or a call does not fit the plan that was made."""


class AlreadyWrappedError(ExitKitError, ValueError):
    """The backbone, or one of its blocks, belongs to another wrapped model."""


class ConfigError(ExitKitError, ValueError):
    """A setting is out of range or does not fit the others."""


class ShapeError(ExitKitError, ValueError):
    """A tensor has the wrong shape for what it is used for."""


class NonFiniteError(ExitKitError, ValueError):
    """A NaN or an infinity turned up where a decision or a training step would rest on it."""


class CheckpointError(ExitKitError, ValueError):
    """Saved heads do not belong to this backbone, or their file is damaged."""


class CalibrationError(ExitKitError, ValueError):
    """A budget or an error bound cannot be met."""


class TrajectoryError(ExitKitError, RuntimeError):
    """Something needs, or forbids, an open trajectory."""


class MissingExtraError(ExitKitError, ImportError):
    """An optional dependency is needed and not installed."""


class NonFiniteWarning(UserWarning):
    """A NaN or an infinity turned up where a rule looked: the row runs to the end with it."""


class UnfittedWarning(UserWarning):
    """Exits are used that were never fitted."""


class DoubtWarning(UserWarning):
    """Something about a backbone could not be told by running it, and is worth a declaration."""


def suggest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Returns a "Did you mean" sentence for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def expect(
    where: str, value: object, kinds: type | tuple[type, ...], wanted: str, remedy: str
) -> None:
    """Refuses a value of another type.

    Arguments:
        where: What was called, and with which argument.
        value: The value.
        kinds: The types that fit.
        wanted: What they are, in words.
        remedy: What to do, as a sentence.

    Raises:
        ConfigError: If it is of none of these types.
    """
    if not isinstance(value, kinds):
        found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        found = found if len(found) <= 60 else f"a {type(value).__name__}"
        raise ConfigError(f"{where}: expected {wanted}, got {found}. {remedy}")
