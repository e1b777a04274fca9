"""A policy for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from exitkit.model import ExitModel, ExitModels
from exitkit.policies import Policy


@contextmanager
def acting(model: Any, policy: Policy) -> Iterator[None]:
    """Gives a wrapped model another policy for a while; anything else stays as it is.

    Arguments:
        model: The wrapped model, or what has no policy.
        policy: The policy meanwhile.
    """
    with model.using(policy) if isinstance(model, ExitModel | ExitModels) else nullcontext():
        yield
