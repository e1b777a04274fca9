"""What a user asks to be compared, and what runs for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import nn

from exitkit.calibration.acting import acting as with_policy
from exitkit.errors import ConfigError, expect
from exitkit.evaluation.rows import Kind
from exitkit.model import Wrapped
from exitkit.policies import Policy


@dataclass(frozen=True)
class Entry:
    """A wrapped model with the policy to judge, or another network in its place.

    Attributes:
        name: What the report calls it.
        model: The wrapped model; or a network called as `model(x, t, **conditions)`, a classifier
            as `model(images)`.
        policy: The policy; or what `calibrate` knows by name, which is calibrated to each budget.
            If None, the model's own, calibrated where there are budgets. The model's own is put back
            afterwards.
        family: The curve it belongs to: entries of one method at several budgets share one. A curve
            of its own if None.
        static: Which static opponents the policy meets: its own static schedule and the exit of
            about its cost (True), one of the two, or none.
    """

    name: str
    model: nn.Module
    policy: Policy | str | None = None
    family: str | None = None
    static: bool | Literal["schedule", "fixed exit"] = True

    def __post_init__(self) -> None:
        """Checks the model, which may be anything until here.

        Raises:
            ConfigError: If it is no network, the name is no text, or the policy none.
        """
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(
                f"Entry: expected a name, which tables and figures show, got {self.name!r}. For example "
                "ek.Entry('mine', model)."
            )
        if not isinstance(self.model, nn.Module):
            raise ConfigError(
                f"Entry: the model of {self.name!r} is {type(self.model).__name__}, expected what ek.wrap "
                "returned or a network. Of a pipeline, pass ek.wrap(pipe, ...) or one of its networks."
            )
        if self.policy is not None:
            remedy = "Leave it out for the model's own, or pass such as ek.policies.FixedExit(1)."
            wanted = "a policy, the name of one, or None"
            expect(f"Entry: policy of {self.name!r}", self.policy, (Policy, str), wanted, remedy)

    @property
    def acting(self) -> Policy | None:
        """The policy that runs; None for a network without exits.

        Raises:
            ConfigError: If it is still to be calibrated.
        """
        if isinstance(self.policy, str):
            raise ConfigError(
                f"compare: the policy {self.policy!r} of {self.name!r} has to be calibrated, and there "
                "is no budget. Pass budgets=[0.5], or a finished policy."
            )
        if self.policy is None and isinstance(self.model, Wrapped):
            return self.model.policy
        return self.policy


@dataclass(frozen=True)
class Rival:
    """Something that runs, and becomes one row of the table.

    Attributes:
        name: Unique.
        kind: What it is.
        module: What runs: a wrapped model, the bare full model, or another network.
        policy: Policy of a wrapped model.
        family: Curve of the entry it belongs to.
        model: Which wrapped model, by its preset.
        sampler: Name of the sampler; empty for classifiers.
        steps: Sampler steps.
        opponent: Name of the row of about its cost that it is compared with: fewer steps, or a fixed
            exit.
        cost: Executed MACs over the full run's, where no trace tells them.
        around: The wrapped model whose backbone runs by itself here; its exits are out meanwhile.
    """

    name: str
    kind: Kind
    module: nn.Module
    policy: Policy | None = None
    family: str = ""
    model: str = ""
    sampler: str = ""
    steps: int | None = None
    opponent: str | None = None
    cost: float | None = None
    around: Wrapped | None = None

    def acting(self) -> AbstractContextManager[None]:
        """Makes the module what the row says: its policy in a wrapped model, no exits in a bare one."""
        return acting(self.module, self.policy) if self.around is None else self.around.suspended()

    def runs_like(self, other: Rival) -> bool:
        """Whether the other does the very same work."""
        mine = (self.policy, self.sampler, self.steps)
        return self.module is other.module and mine == (other.policy, other.sampler, other.steps)


def check_names(where: str, names: Sequence[str]) -> None:
    """Checks that there are names and that they differ.

    Arguments:
        where: Who asks, for the message.
        names: The names of entries.

    Raises:
        ConfigError: If there is none, or one twice.
    """
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"{where}: entries need names that differ, got {', '.join(names) or 'none'}."
        )


def check_wrapped(entry: Entry) -> None:
    """Checks that an entry with a policy has a model that can take it.

    Arguments:
        entry: The entry.

    Raises:
        ConfigError: If its model is not wrapped.
    """
    if entry.policy is not None and not isinstance(entry.model, Wrapped):
        raise ConfigError(f"compare: {entry.name!r} is no wrapped model; use wrap first.")


def wrapped_around(module: nn.Module, entries: Sequence[Entry]) -> Wrapped | None:
    """The wrapped model among the entries whose backbone a module is, or None."""

    def parts(network: nn.Module) -> list[nn.Module]:
        return list(network.values()) if isinstance(network, nn.ModuleDict) else [network]

    wrapped = (e.model for e in entries if isinstance(e.model, Wrapped))
    return next((model for model in wrapped if parts(model.backbone) == parts(module)), None)


@contextmanager
def acting(module: nn.Module, policy: Policy | None) -> Iterator[None]:
    """Gives a wrapped model a policy for a while."""
    with nullcontext() if policy is None else with_policy(module, policy):
        yield
