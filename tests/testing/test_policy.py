"""The contract of a policy notices policies that look, or remember, without saying so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.policies import Dial, Policy, Signals, register_policy
from exitkit.policies import base as base_module
from exitkit.testing import ContractError, check_policy


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base_module, "_REGISTRY", dict(base_module._REGISTRY))
    yield


def keep(signals: Signals, last: int | None = None) -> None:
    """Keeps one number a row, of all rows or of the first few."""
    if signals.exit == 1:
        signals.state["seen"] = signals.hidden().flatten(1).mean(dim=1)[:last]


def look(what: str, signals: Signals) -> None:
    """Does one of the things that a policy has to announce."""
    if what == "entry":
        signals.entry()
    elif what == "previous hidden":
        signals.previous_hidden()
    elif what == "previous prediction":
        signals.previous_prediction()
    elif what == "gaps":
        signals.gaps()
    elif what == "predictions":
        signals.predictions()
    elif what == "uncertainty":
        signals.uncertainty()
    elif what == "state":
        keep(signals)
    elif what == "some rows":
        keep(signals, 2)


@dataclass(frozen=True)
class _Silent(Policy):
    """Says nothing of what it does."""

    what: str
    name: ClassVar[str] = "looks_silently"

    def decide(self, signals: Signals) -> Tensor:
        look(self.what, signals)
        return torch.zeros_like(signals.rows, dtype=torch.bool)


@dataclass(frozen=True)
class _Open(_Silent):
    """Says all of it."""

    name: ClassVar[str] = "looks_openly"
    reads_uncertainty: ClassVar[bool] = True
    compares_exits: ClassVar[bool] = True
    compares_steps: ClassVar[bool] = True
    reads_entry: ClassVar[bool] = True
    peeks: ClassVar[bool] = True


ANNOUNCED = {
    "entry": "says reads_entry = False",
    "previous hidden": "says compares_exits = False",
    "previous prediction": "says compares_exits = False",
    "gaps": "says peeks = False",
    "predictions": "says peeks = False",
    "uncertainty": "says reads_uncertainty = False",
    "state": r"keeps \['seen'\] in signals\.state but says compares_steps = False",
}


@pytest.mark.parametrize("what", ANNOUNCED)
def test_what_a_policy_does_not_announce_is_noticed(what: str) -> None:
    register_policy(_Silent)
    register_policy(_Open)
    with pytest.raises(ContractError, match=f"^_Silent: .*{ANNOUNCED[what]}"):
        check_policy(_Silent(what))
    check_policy(_Open(what))  # announced, the same is fine
    check_policy(_Silent("nothing"))


def test_state_of_some_rows_alone_is_noticed() -> None:
    register_policy(_Open)
    with pytest.raises(ContractError, match=r"full-batch tensors, \(6, \.\.\.\)"):
        check_policy(_Open("some rows"))


def test_state_that_mixes_rows_is_noticed_a_step_later() -> None:
    @register_policy
    @dataclass(frozen=True)
    class Mixing(Policy):
        """Compares each row with what the whole batch did in the step before."""

        name: ClassVar[str] = "mixing"
        compares_steps: ClassVar[bool] = True

        def decide(self, signals: Signals) -> Tensor:
            mean = signals.hidden().flatten(1).mean(dim=1)
            if signals.exit > 1:
                return torch.zeros_like(mean, dtype=torch.bool)
            last = signals.state.get("last")
            signals.state["last"] = mean.mean().expand(signals.batch).clone()
            return torch.zeros_like(mean, dtype=torch.bool) if last is None else mean > last

    with pytest.raises(ContractError, match="with other batch mates"):
        check_policy(Mixing())


def test_a_dial_on_no_field_is_noticed() -> None:
    @register_policy
    @dataclass(frozen=True)
    class Dialled(Policy):
        name: ClassVar[str] = "dialled"
        dial: ClassVar[Dial] = Dial("treshold", 0.0, 1.0)

        def decide(self, signals: Signals) -> Tensor:
            return torch.zeros_like(signals.rows, dtype=torch.bool)

    with pytest.raises(ContractError, match="dial names 'treshold', which is no field"):
        check_policy(Dialled())
