"""A policy for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exitkit.model import ExitModel
from exitkit.policies import Policy


@contextmanager
def acting(model: Any, policy: Policy) -> Iterator[None]:
    """Gives a wrapped model another policy for a while; anything else stays as it is.

    Arguments:
        model: The wrapped model, or what has no policy.
        policy: The policy meanwhile.
    """
    if not isinstance(model, ExitModel):
        yield
        return
    before = model.policy
    model.policy = policy
    try:
        yield
    finally:
        model.policy = before
