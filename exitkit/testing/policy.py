"""The contract of a policy."""

from __future__ import annotations

import json
from dataclasses import fields

import torch
from torch import Tensor

from exitkit.errors import ConfigError, ShapeError
from exitkit.policies import NEEDS, ExitRule, Policy, Schedule, StepInfo, policy_from_dict
from exitkit.policies.registry import check_kind
from exitkit.testing.contract import ContractError, require
from exitkit.testing.signals import SignalTable, TableSignals


def check_policy(
    policy: Policy, *, exits: int = 5, batch: int = 6, seed: int = 0, classes: int = 0
) -> None:
    """Checks every promise of a policy on made-up signals of a few steps.

    Arguments:
        policy: The policy.
        exits: Number of exits K of the made-up model.
        batch: Rows of the made-up batch, at least 2.
        seed: Seed of the signals.
        classes: For policies of classifiers, the number of classes.

    Raises:
        ContractError: At the first broken promise.

    Example:
        >>> from exitkit.policies.threshold import UncertaintyThreshold
        >>> check_policy(UncertaintyThreshold(0.5))
    """
    name = type(policy).__name__
    _check_saved(policy, name)
    table = SignalTable.made_up(exits=exits, batch=batch, seed=seed, classes=classes)
    try:
        check_kind(type(policy))
        if isinstance(policy, Schedule):
            _check_planned(policy, name, table)
        if isinstance(policy, ExitRule):
            _check_needs(policy, name)
        together = table.walk(policy, _Look(name, table))
    except ConfigError as error:
        raise ContractError(str(error)) from error
    except ShapeError as error:
        if classes:
            raise
        raise ContractError(
            f"{error} If it is meant for classifiers, check it on signals of one: "
            f"check_policy({name}(...), classes=10)."
        ) from error
    require(
        torch.equal(together, table.walk(policy)),
        f"{name}: two runs on the same signals decide differently. Keep no state in the policy.",
    )
    if policy.couples_rows:
        return  # openly
    other = SignalTable.made_up(exits=exits, batch=batch, seed=seed + 1, classes=classes)
    for row in range(batch):
        alone, here = table.only(row, other).walk(policy)[:, row].tolist(), together[:, row]
        require(
            alone == here.tolist(),
            f"{name}: row {row} leaves at depths {here.tolist()}, and at {alone} with other batch "
            "mates. Reduce over everything but the rows, or say so with `couples_rows`.",
        )


def _check_saved(policy: Policy, name: str) -> None:
    params = getattr(policy, "__dataclass_params__", None)
    require(
        params is not None and params.frozen,
        f"{name}: a policy is a frozen dataclass. Decorate it with @dataclass(frozen=True) and "
        "keep what changes in signals.memory, or from step to step in signals.state.",
    )
    try:
        text = json.dumps(policy.to_dict())
    except TypeError as error:
        raise ContractError(f"{name}.to_dict() is not JSON ({error}). Use plain values.") from error
    require(
        policy_from_dict(json.loads(text)) == policy,
        f"{name}: policy_from_dict(policy.to_dict()) gives another policy. Every field must be in "
        "to_dict(), and the class registered with @register_policy.",
    )
    tunable = policy.tuning()
    known = [f.name for f in fields(policy)]  # type: ignore[arg-type]
    require(
        tunable is None or tunable.field in known,
        f"{name}.tunable names {tunable.field if tunable else ''!r}, which is no field ({known}).",
    )
    for end in () if tunable is None else (tunable.safe, tunable.cheap):
        require(
            policy.same_family(policy.at(end)),
            f"{name}: at {end:g}, one end of its tunable field, it is another policy.",
        )


def _check_needs(rule: ExitRule, name: str) -> None:
    unknown = sorted((rule.needs | rule.reads()) - NEEDS.keys())
    require(
        not unknown,
        f"{name}.needs names {unknown}, and a rule can need {', '.join(NEEDS)}.",
    )
    more = sorted(rule.reads() - rule.needs)
    require(
        not more, f"{name}.reads() returns {more}, which {name}.needs does not name. Add it there."
    )


def _check_planned(policy: Schedule, name: str, table: SignalTable) -> None:
    planned = policy.depths(StepInfo(table.batch, table.exits, table.timestep[1], 1, table.steps))
    require(
        planned.shape == (table.batch,) and planned.dtype == torch.long,
        f"{name}.depths: expected ({table.batch},) of torch.long, got {tuple(planned.shape)} of "
        f"{planned.dtype}.",
    )
    require(
        bool(((planned >= 1) & (planned <= table.exits + 1)).all()),
        f"{name}.depths: expected 1..{table.exits + 1}, got {planned.tolist()}.",
    )


class _Look:
    """Checks every decision on its way."""

    def __init__(self, name: str, table: SignalTable) -> None:
        self._name, self._table = name, table
        self._before = {n: v.clone() for n, v in vars(table).items()}

    def __call__(self, signals: TableSignals, leaving: Tensor) -> None:
        name = self._name
        require(
            leaving.shape == signals.rows.shape and leaving.dtype == torch.bool,
            f"{name}.decide: expected {tuple(signals.rows.shape)} of torch.bool, got "
            f"{tuple(leaving.shape)} of {leaving.dtype}.",
        )
        require(
            all(v.equal(self._before[n]) for n, v in vars(self._table).items()),
            f"{name}.decide: changes a signal in place. Work on a copy.",
        )
        count = self._table.batch
        for kept in (signals.memory, signals.kept):
            require(
                all(len(value) == count for value in kept.values()),
                f"{name}.decide: signals.memory and signals.state hold full-batch tensors, "
                f"({count}, ...); got { {k: tuple(v.shape) for k, v in kept.items()} }.",
            )
