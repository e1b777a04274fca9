"""Exit rules: policies that are asked at every exit, for the rows that are still undecided."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import Policy
from exitkit.policies.signals import Signals


class ExitRule(Policy):
    """Looks at signals and says which rows leave. Subclasses are frozen dataclasses.

    Attributes:
        needs: What the rule reads, out of `exitkit.policies.signals.NEEDS`. The run keeps exactly
            that, and reading anything else is an error.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def reads(self) -> frozenset[str]:
        """What this very rule reads, so that nothing is kept in vain.

        Returns:
            `needs`, or less where fields decide.
        """
        return self.needs

    def may_leave(self) -> bool:
        """Whether any row can leave at all; where none can, the run asks at no exit."""
        return True

    @abstractmethod
    def decide(self, signals: Signals) -> Tensor:
        """Says which of the undecided rows leave at this exit.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R). True leaves here.
        """


def check_named(rule: ExitRule, signal: str) -> None:
    """Checks that a rule may read a signal.

    Arguments:
        rule: The rule that reads.
        signal: A name out of `NEEDS`.

    Raises:
        ConfigError: If the rule does not name it; the message tells the line to add.
    """
    if signal in rule.reads():
        return
    name = type(rule).__name__
    if signal in rule.needs:
        raise ConfigError(
            f"{name}: decide() reads {signal!r}, which {name}.needs names but {name}.reads() leaves out "
            f"for {rule}, so the run did not keep it. Let reads() return it where decide() reads it."
        )
    line = ", ".join(f'"{need}"' for need in sorted({*rule.needs, signal}))
    raise ConfigError(
        f"{name}: decide() reads {signal!r} without naming it, so the run did not keep it. Add this "
        f"line to the class: `needs: ClassVar[frozenset[str]] = frozenset({{{line}}})`."
    )
