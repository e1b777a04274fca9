"""Policies by name: what makes a saved policy again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from exitkit.errors import ConfigError, suggest
from exitkit.policies.base import Policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.schedule import Schedule
from exitkit.policies.signals import NEEDS

P = TypeVar("P", bound=type[Policy])

_REGISTRY: dict[str, type[Policy]] = {}


def register_policy(cls: P) -> P:
    """Class decorator that makes a policy known to `policy_from_dict` by its `name`.

    Arguments:
        cls: A frozen dataclass derived from `Schedule` or `ExitRule`.

    Returns:
        The class itself.

    Raises:
        ConfigError: If the class is of neither kind or no frozen dataclass, its name is missing or
            taken, or it needs a signal that does not exist.
    """
    check_kind(cls)
    name = getattr(cls, "name", None)
    params = cls.__dict__.get("__dataclass_params__")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{cls.__name__} has no name. Add `name: ClassVar[str] = ...` to it.")
    if params is None or not params.frozen:
        raise ConfigError(
            f"{cls.__name__} is no frozen dataclass. Put @dataclass(frozen=True) below "
            "@register_policy: a policy is saved with the model by its fields."
        )
    unknown = sorted(cls.needs - NEEDS.keys()) if issubclass(cls, ExitRule) else []
    if unknown:
        raise ConfigError(
            f"{cls.__name__}.needs names {', '.join(map(repr, unknown))}, and a rule can need "
            f"{', '.join(NEEDS)}.{suggest(unknown[0], NEEDS)}"
        )
    if name in _REGISTRY:
        raise ConfigError(
            f"The policy name {name!r} belongs to {_REGISTRY[name].__qualname__} already, so "
            f"{cls.__qualname__} cannot take it. Choose another name."
        )
    _REGISTRY[name] = cls
    return cls


def check_kind(cls: type) -> None:
    """Checks that a class is a policy that a run can ask.

    Arguments:
        cls: The class.

    Raises:
        ConfigError: If it is neither a `Schedule` nor an `ExitRule`.
    """
    if not issubclass(cls, Schedule | ExitRule):
        raise ConfigError(
            f"{cls.__name__} is neither a Schedule nor an ExitRule, so a run would not know how to ask "
            "it. Derive it from exitkit.policies.Schedule and write `depths(info)` if depths are known "
            "before the forward, from exitkit.policies.ExitRule and write `decide(signals)` if it has "
            "to look."
        )


def registered_policies() -> dict[str, type[Policy]]:
    """Every policy that `policy_from_dict` knows, by name."""
    return dict(_REGISTRY)


def check_policy(where: str, policy: object, exits: int) -> None:
    """Checks that something is a policy that a model can follow.

    Arguments:
        where: Who asks, for the message.
        policy: What should be one.
        exits: Number of exits K of the model.

    Raises:
        ConfigError: If it is no policy, neither a `Schedule` nor an `ExitRule`, or speaks of exits that the
            model has not.
    """
    if not isinstance(policy, Policy):
        meant = "For example model.policy = ek.policies.UncertaintyThreshold(0.05)."
        what = type(policy).__name__
        if isinstance(getattr(policy, "policy", None), Policy):  # a calibration
            meant = "Take the policy that it found: model.policy = found.policy."
        elif isinstance(policy, type) and issubclass(policy, Policy):
            what, meant = f"the class {policy.__name__}", f"Make one of it: {policy.__name__}(...)."
        raise ConfigError(f"{where}: expected a Policy, got {what}. {meant}")
    check_kind(type(policy))
    policy.check_exits(exits)


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


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
