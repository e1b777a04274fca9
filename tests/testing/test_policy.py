"""The contract of a policy notices policies that look, or remember, without saying so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies import (
    NEEDS,
    ConfidenceThreshold,
    ExitRule,
    FixedExit,
    Policy,
    Schedule,
    Signals,
    StepInfo,
    Tunable,
    register_policy,
    registry,
)
from exitkit.testing import ContractError, check_policy


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTRY", registry.registered_policies())
    yield


def keep(signals: Signals, last: int | None = None) -> None:
    """Keeps one number a row, of all rows or of the first few."""
    if signals.exit == 1:
        signals.state["seen"] = signals.timestep[:last]


def look(what: str, signals: Signals) -> None:
    """Does one of the things that a policy has to announce."""
    if what == "entry":
        signals.entry()
    elif what == "hidden":
        signals.hidden()
    elif what == "prediction":
        signals.prediction()
    elif what == "age":
        assert (signals.age >= 0).all()
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
class _Silent(ExitRule):
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
    needs: ClassVar[frozenset[str]] = frozenset(NEEDS)


ANNOUNCED = {
    "age": "age",
    "entry": "entry",
    "hidden": "hidden",
    "prediction": "prediction",
    "previous hidden": "previous_hidden",
    "previous prediction": "previous_prediction",
    "gaps": "oracle",
    "predictions": "oracle",
    "uncertainty": "uncertainty",
    "state": "state",
}


@pytest.mark.parametrize("what", ANNOUNCED)
def test_what_a_rule_does_not_name_is_noticed(what: str) -> None:
    register_policy(_Silent)
    register_policy(_Open)
    named = ANNOUNCED[what]
    line = rf'`needs: ClassVar\[frozenset\[str\]\] = frozenset\({{"{named}"}}\)`'
    with pytest.raises(ContractError, match=f"^_Silent: .*'{named}' without naming it.*{line}"):
        check_policy(_Silent(what))
    check_policy(_Open(what))  # named, the same is fine
    check_policy(_Silent("nothing"))


def test_every_signal_that_can_be_named_is_tried_above() -> None:
    # A classifier's logits are no signal of the images above; tests/execution/test_signals.py has them.
    assert set(ANNOUNCED.values()) == NEEDS.keys() - {"logits"}


def test_a_rule_that_reads_what_its_fields_left_out_is_noticed() -> None:
    @register_policy
    @dataclass(frozen=True)
    class Narrow(_Open):
        name: ClassVar[str] = "narrow"

        def reads(self) -> frozenset[str]:
            return frozenset({"hidden"})

    with pytest.raises(ContractError, match=r"Narrow.needs names but Narrow.reads\(\) leaves out"):
        check_policy(Narrow("entry"))
    check_policy(Narrow("hidden"))


def test_needs_that_do_not_exist_are_noticed() -> None:
    @dataclass(frozen=True)
    class Misspelt(_Silent):
        name: ClassVar[str] = "misspelt"
        needs: ClassVar[frozenset[str]] = frozenset({"uncertainy"})

    with pytest.raises(ConfigError, match="'uncertainy'.*Did you mean 'uncertainty'"):
        register_policy(Misspelt)

    @register_policy
    @dataclass(frozen=True)
    class Widening(_Silent):
        name: ClassVar[str] = "widening"

        def reads(self) -> frozenset[str]:
            return frozenset({"hidden"})

    with pytest.raises(ContractError, match=r"Widening.reads\(\) returns \['hidden'\]"):
        check_policy(Widening("nothing"))


def test_a_policy_that_is_neither_schedule_nor_rule_is_refused() -> None:
    @dataclass(frozen=True)
    class Neither(Policy):
        name: ClassVar[str] = "neither"

    with pytest.raises(ConfigError, match="neither a Schedule nor an ExitRule.*depths.*decide"):
        register_policy(Neither)


@dataclass(frozen=True)
class _Planned(Schedule):
    """Gives depths of a wrong kind, chosen by name."""

    fault: str
    name: ClassVar[str] = "planned"

    def depths(self, info: StepInfo) -> Tensor:
        depth = torch.full((info.batch,), info.exits + 1)
        if self.fault == "float":
            return depth.float()
        if self.fault == "short":
            return depth[1:]
        return depth + 1 if self.fault == "deep" else depth


def test_wrong_depths_are_noticed() -> None:
    register_policy(_Planned)
    for fault, promise in (("float", "torch.long"), ("short", r"got \(5,\)"), ("deep", "1..6")):
        with pytest.raises(ContractError, match=rf"_Planned.depths: .*{promise}"):
            check_policy(_Planned(fault))
    check_policy(_Planned("none"))
    check_policy(FixedExit(3))
    with pytest.raises(ContractError, match="FixedExit.depth is 6, and the model has 5 exits"):
        check_policy(FixedExit(6))


def test_state_of_some_rows_alone_is_noticed() -> None:
    register_policy(_Open)
    with pytest.raises(ContractError, match=r"full-batch tensors, \(6, \.\.\.\)"):
        check_policy(_Open("some rows"))


def test_state_that_mixes_rows_is_noticed_a_step_later() -> None:
    @register_policy
    @dataclass(frozen=True)
    class Mixing(ExitRule):
        """Compares each row with what the whole batch did in the step before."""

        name: ClassVar[str] = "mixing"
        needs: ClassVar[frozenset[str]] = frozenset({"hidden", "state"})

        def decide(self, signals: Signals) -> Tensor:
            mean = signals.hidden().flatten(1).mean(dim=1)
            if signals.exit > 1:
                return torch.zeros_like(mean, dtype=torch.bool)
            last = signals.state.get("last")
            signals.state["last"] = mean.mean().expand(signals.batch).clone()
            return torch.zeros_like(mean, dtype=torch.bool) if last is None else mean > last

    with pytest.raises(ContractError, match="with other batch mates"):
        check_policy(Mixing())


def test_a_tunable_that_is_no_field_is_noticed() -> None:
    @register_policy
    @dataclass(frozen=True)
    class Tuned(_Silent):
        name: ClassVar[str] = "tuned"
        tunable: ClassVar[Tunable | None] = Tunable("treshold", 0.0, 1.0)

    with pytest.raises(ContractError, match="tunable names 'treshold', which is no field"):
        check_policy(Tuned("nothing"))


def test_a_policy_of_classifiers_is_told_how_it_is_checked() -> None:
    policy = ConfidenceThreshold(0.9)
    with pytest.raises(
        ContractError, match=r"check_policy\(ConfidenceThreshold\(\.\.\.\), classes=10\)"
    ):
        check_policy(policy)
    check_policy(policy, classes=10)  # what the message says to do
