"""A policy for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    models = list(model.values()) if isinstance(model, ExitModels) else [model]
    before = [(one, one.policy) for one in models if isinstance(one, ExitModel)]
    try:
        for one, _ in before:
            one.policy = policy
        yield
    finally:
        for one, own in before:
            one.policy = own
