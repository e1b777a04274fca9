"""Who decides: the policy of a wrapped model, and that of one request in its thread or task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from exitkit.errors import ConfigError
from exitkit.policies import Calibration, Policy
from exitkit.policies.registry import check_policy
from exitkit.summary import Exit

# By the model, per thread and task: requests that share a model do not meet.
_USED: ContextVar[dict[int, Policy]] = ContextVar("exitkit_policies", default={})  # noqa: B039


@contextmanager
def using(models: Sequence[object], policy: Policy) -> Iterator[None]:
    """Gives models another policy for a while, in this thread or task alone.

    Arguments:
        models: The wrapped models.
        policy: Their policy meanwhile.

    Yields:
        Nothing.
    """
    token = _USED.set({**_USED.get(), **{id(model): policy for model in models}})
    try:
        yield
    finally:
        _USED.reset(token)


class Deciding(ABC):
    """The policy of a wrapped model, and the calibrations that it may come from."""

    calibrations: list[Calibration]
    _policy: Policy

    @property
    @abstractmethod
    def exits(self) -> list[Exit]:
        """The exits in order; `exits[d - 1]` is where a row of depth d leaves."""

    @property
    def policy(self) -> Policy:
        """Decides who leaves; assign another one at any time. Inside `using`, the one in use there.

        Raises:
            ConfigError: If what is assigned is no policy, or speaks of exits that are not there; inside
                `using`, where another one is in use.
        """
        return _USED.get().get(id(self), self._policy)

    @policy.setter
    def policy(self, policy: Policy) -> None:
        check_policy("model.policy", policy, len(self.exits))
        if id(self) in _USED.get():
            raise ConfigError(
                f"model.policy: {self.policy} is in use here by `with model.using(...)`, so {policy} would "
                "do nothing. Assign it outside, or use it: with model.using(policy)."
            )
        self._policy = policy

    def using(self, policy: Policy) -> AbstractContextManager[None]:
        """Uses another policy for a while, in this thread or task alone: a policy a request.

        Contexts may be nested; the innermost counts. Other requests that share the model, or shallow
        copies of its pipeline, go on with theirs.

        Arguments:
            policy: The policy meanwhile.

        Returns:
            The context.

        Raises:
            ConfigError: As for `policy`.

        Example:
            `with model.using(found.policy): pipe("a lighthouse")`
        """
        check_policy("model.using", policy, len(self.exits))
        return using((self,), policy)

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that found the present policy; None if there is none."""
        return next((c for c in reversed(self.calibrations) if c.policy == self.policy), None)
