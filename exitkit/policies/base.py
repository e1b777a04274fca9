"""What a policy is: it sees signals and says which rows leave. It never sees a module.

A policy is a small frozen dataclass. Before a forward the run asks for `depths`: a schedule knows
them, and then nobody looks at signals at all. Otherwise the run calls `decide` at every exit.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from exitkit.errors import ConfigError, suggest
from exitkit.policies.signals import Signals as Signals
from exitkit.policies.signals import StepInfo as StepInfo

_DECADES = 8.0
"""Decades that a search by ratios spans."""

FULL = 1_000_000
"""A depth beyond every network: the row runs to the end."""


@dataclass(frozen=True)
class Dial:
    """The field of a policy that trades cost for error.

    Attributes:
        field: Name of the field.
        safest: Its value where nobody, or hardly anybody, leaves early.
        loosest: Its value where everybody leaves as early as the policy allows.
        whole: Whether only whole numbers make sense.
        log: Whether to search by ratios of the distance from the safest value.
    """

    field: str
    safest: float
    loosest: float
    whole: bool = False
    log: bool = False

    def value(self, position: float) -> float:
        """The value at a position from 0, the safest, to 1, the loosest.

        Arguments:
            position: In [0, 1].

        Returns:
            The value.
        """
        if position <= 0:
            return self.safest
        part = 10 ** (_DECADES * (position - 1)) if self.log else position
        value = self.safest + (self.loosest - self.safest) * part
        return round(value) if self.whole else value


class Policy(ABC):
    """Decides which rows leave at which exit. Subclasses are frozen dataclasses.

    Attributes:
        name: What the policy is called in saved settings.
        stateful: Whether it only works inside `with model.trajectory():`.
        reads_uncertainty: Whether it looks at uncertainty heads.
        compares_exits: Whether it looks at the exit before; only then its hidden state is kept.
        compares_steps: Whether it keeps something in `signals.state`; it is then asked at every
            step, also where nobody may leave yet.
        reads_entry: Whether it looks at the hidden state before the first block.
        peeks: Whether it looks at what only the full model knows.
        dial: The field that trades cost for error, for `calibrate`; None if there is none.
    """

    name: ClassVar[str]
    stateful: ClassVar[bool] = False
    reads_uncertainty: ClassVar[bool] = False
    compares_exits: ClassVar[bool] = False
    compares_steps: ClassVar[bool] = False
    reads_entry: ClassVar[bool] = False
    peeks: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = None

    @property
    def couples_rows(self) -> bool:
        """Whether one decision holds for the whole batch, so that a row depends on its mates."""
        return False

    def depths(self, info: StepInfo) -> Tensor | None:
        """Returns the depth of every row when it is known before the forward.

        Arguments:
            info: What is known so far.

        Returns:
            Depths in 1..K+1, long, with shape (B), on `info.device`; None asks for `decide`.
        """
        return None

    @abstractmethod
    def decide(self, signals: Signals) -> Tensor:
        """Says which of the undecided rows leave at this exit.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R). True leaves here.
        """

    def to_dict(self) -> dict[str, Any]:
        """Returns the policy as plain values that survive JSON.

        Returns:
            The name and every field; tuples become lists. `policy_from_dict` is the inverse.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"name": self.name, **{f.name: _plain(getattr(self, f.name)) for f in fields}}

    def __str__(self) -> str:
        fields = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        shown = [f"{f.name}={_short(value)}" for f, value in fields if value != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"


P = TypeVar("P", bound=type[Policy])

_REGISTRY: dict[str, type[Policy]] = {}


def register_policy(cls: P) -> P:
    """Class decorator that makes a policy known to `policy_from_dict` by its `name`.

    Arguments:
        cls: A frozen dataclass derived from `Policy`.

    Returns:
        The class itself.

    Raises:
        ConfigError: If the name is missing or taken, or the class is no frozen dataclass.
    """
    name = getattr(cls, "name", None)
    params = cls.__dict__.get("__dataclass_params__")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{cls.__name__} has no name. Add `name: ClassVar[str] = ...` to it.")
    if params is None or not params.frozen:
        raise ConfigError(
            f"{cls.__name__} is no frozen dataclass. Put @dataclass(frozen=True) below "
            "@register_policy: a policy is saved with the model by its fields."
        )
    if name in _REGISTRY:
        raise ConfigError(
            f"The policy name {name!r} belongs to {_REGISTRY[name].__qualname__} already, so "
            f"{cls.__qualname__} cannot take it. Choose another name."
        )
    _REGISTRY[name] = cls
    return cls


def policy_from_dict(data: Mapping[str, Any]) -> Policy:
    """Makes a policy from what `Policy.to_dict` returned.

    Arguments:
        data: The name and the fields; fields with a default may be left out.

    Returns:
        The policy.

    Raises:
        ConfigError: If the name or a field is unknown, a field is missing, or a value is refused.
    """
    name = data.get("name")
    if name not in _REGISTRY:
        raise ConfigError(
            f"There is no policy {name!r} (policies: {', '.join(sorted(_REGISTRY))})."
            f"{suggest(str(name), _REGISTRY)} Own policies need @register_policy, and their module "
            "must be imported first."
        )
    cls = _REGISTRY[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given = {key: _tuples(value) for key, value in data.items() if key != "name"}
    for key in given:
        if key not in fields:
            raise ConfigError(
                f"Policy {name!r} has no field {key!r} (fields: {', '.join(fields) or 'none'})."
                f"{suggest(key, fields)}"
            )
    missing = [
        key
        for key, field in fields.items()
        if key not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"Policy {name!r} needs a value for {', '.join(missing)}.")
    return cls(**given)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))}{',' if len(value) == 1 else ''})"
    if value == FULL and not isinstance(value, bool):
        return "FULL"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
