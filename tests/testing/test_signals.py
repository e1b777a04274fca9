"""Tables of signals, walked by policies: against a loop over steps, rows and exits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies import (
    NEEDS,
    ExitRule,
    FixedExit,
    NeverExit,
    Policy,
    ScriptedExit,
    Signals,
    StepSchedule,
    UncertaintyThreshold,
)
from exitkit.testing.signals import SignalTable, TableSignals
from tests.execution.test_signals import READ

SIZES = [(3, 5, 6), (1, 1, 1), (4, 2, 3)]
sized = pytest.mark.parametrize("size", SIZES, ids=str)
seeded = pytest.mark.parametrize("seed", [0, 1, 2])

# ------------------------------------------------------------------------------------- made up


@sized
@pytest.mark.parametrize("classes", [0, 7])
def test_a_table_has_the_sizes_that_were_asked_for(size: tuple[int, ...], classes: int) -> None:
    steps, exits, batch = size
    table = SignalTable.made_up(steps, exits, batch, classes=classes)
    assert (table.steps, table.exits, table.batch) == size
    output = (classes,) if classes else (3, 4, 4)
    assert table.prediction.shape == (steps, exits, batch, *output)
    assert table.full.shape == (steps, batch, *output)
    assert table.hidden.shape[:3] == (steps, exits, batch) == table.maps.shape[:3]
    assert table.entry.shape == (steps, batch, *table.hidden.shape[3:])
    assert 0 <= float(table.maps.min()) and float(table.maps.max()) <= 1
    assert bool((table.timestep[:-1] > table.timestep[1:]).all()), "noise does not fall"


@seeded
def test_seeds_alone_make_the_numbers(seed: int) -> None:
    first, again, other = (SignalTable.made_up(seed=s) for s in (seed, seed, seed + 1))
    same = {
        f.name: torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(first)
    }
    assert all(same.values())
    assert not torch.equal(first.maps, other.maps) and not torch.equal(first.hidden, other.hidden)


@seeded
def test_rows_differ_in_how_sure_they_are(seed: int) -> None:
    depths = SignalTable.made_up(seed=seed).walk(UncertaintyThreshold(0.2))
    assert len(depths.unique()) > 1, "all rows leave at one exit, which tests nothing"


# -------------------------------------------------------------------------------- walked over


def naive(table: SignalTable, threshold: float, patience: int) -> list[list[int]]:
    """AdaDiff's rule with patience, one row and one exit after the other."""
    found = []
    for step in range(table.steps):
        depths = []
        for row in range(table.batch):
            below, depth = 0, table.exits + 1
            for exit in range(table.exits):
                mean = float(table.maps[step, exit, row].double().mean())
                below += mean < threshold
                if mean < threshold and below >= patience:
                    depth = exit + 1
                    break
            depths.append(depth)
        found.append(depths)
    return found


@sized
@seeded
@pytest.mark.parametrize(("threshold", "patience"), [(0.15, 1), (0.3, 2), (0.05, 1)])
def test_a_rule_is_walked_as_a_loop_would(
    size: tuple[int, ...], seed: int, threshold: float, patience: int
) -> None:
    table = SignalTable.made_up(*size, seed=seed)
    walked = table.walk(UncertaintyThreshold(threshold, patience=patience))
    assert walked.tolist() == naive(table, threshold, patience)


def test_schedules_are_walked_without_a_look() -> None:
    table, looks = SignalTable.made_up(2, 4, 3), list[int]()
    for policy, depths in (
        (FixedExit(2), [[2] * 3] * 2),
        (NeverExit(), [[5] * 3] * 2),
        (ScriptedExit((1, 4, 9)), [[1, 4, 5]] * 2),
        (StepSchedule((3, 1)), [[3] * 3, [1] * 3]),
    ):
        walked = table.walk(policy, lambda signals, mask: looks.append(signals.exit))
        assert walked.clamp(max=5).tolist() == depths, policy
    assert not looks


@dataclass(frozen=True)
class Odd(ExitRule):
    """Lets odd rows leave at the second exit, and everybody at the third."""

    name: ClassVar[str] = "odd"
    needs: ClassVar[frozenset[str]] = frozenset({"age", "state"})

    def decide(self, signals: Signals) -> Tensor:
        counted = signals.state.setdefault("asked", torch.zeros(signals.batch))
        counted[signals.rows] += 1
        odd = signals.rows % 2 == 1
        return (odd & (signals.exit == 2)) | torch.full_like(odd, signals.exit == 3)


def test_rows_that_left_are_not_asked_and_a_step_ends_with_the_last_one() -> None:
    table = SignalTable.made_up(2, 5, 4)
    looks: list[tuple[int | None, int, list[int], list[int]]] = []
    states: list[list[float]] = []

    def look(signals: TableSignals, mask: Tensor) -> None:
        looks.append((signals.step, signals.exit, signals.rows.tolist(), signals.age.tolist()))
        states.append(signals.kept["asked"].tolist())
        assert mask.shape == signals.rows.shape == signals.timestep.shape

    assert table.walk(Odd(), look).tolist() == [[3, 2, 3, 2]] * 2
    everybody, even = [0, 1, 2, 3], [0, 2]
    # Nobody ran to the end in the first step, so all are a step older in the second.
    assert looks == [
        (step, exit, rows, [step] * len(rows))
        for step in range(2)
        for exit, rows in ((1, everybody), (2, everybody), (3, even))
    ]
    assert states[-1] == [6, 4, 6, 4], "state is lost between steps"


def test_ages_begin_anew_with_a_full_step() -> None:
    @dataclass(frozen=True)
    class Ageing(ExitRule):
        name: ClassVar[str] = "ageing"
        needs: ClassVar[frozenset[str]] = frozenset({"age"})

        def decide(self, signals: Signals) -> Tensor:
            return signals.age < torch.tensor([1, 2])[signals.rows]

    # Row 0 leaves at most once in a row, row 1 twice.
    depths = SignalTable.made_up(6, 1, 2).walk(Ageing())
    assert depths.T.tolist() == [[1, 2, 1, 2, 1, 2], [1, 1, 2, 1, 1, 2]]


# --------------------------------------------------------------------------- what can be read


def signals(table: SignalTable, exit: int, rows: list[int], named: Iterable[str]) -> TableSignals:
    found: list[TableSignals] = []

    @dataclass(frozen=True)
    class Reading(ExitRule):
        name: ClassVar[str] = "reading"
        needs: ClassVar[frozenset[str]] = frozenset(named)

        def decide(self, signals: Signals) -> Tensor:
            assert isinstance(signals, TableSignals)
            if signals.exit == exit:
                found.append(signals)
            gone = [row not in rows for row in signals.rows.tolist()]
            return torch.tensor(gone)

    table.walk(Reading())
    return found[-1]  # of the last step


def test_signals_are_the_tables_entries_of_the_rows_that_are_left() -> None:
    table = SignalTable.made_up(2, 4, 5, classes=3)
    rows = [1, 4]
    s = signals(table, 3, rows, NEEDS)
    for mine, want in (
        (s.uncertainty_map(), table.maps[1, 2, rows]),
        (s.uncertainty(), table.maps[1, 2, rows].flatten(1).mean(dim=1)),
        (s.uncertainty("max"), table.maps[1, 2, rows].flatten(1).amax(dim=1)),
        (s.hidden(), table.hidden[1, 2, rows]),
        (s.previous_hidden(), table.hidden[1, 1, rows]),
        (s.prediction(), table.prediction[1, 2, rows]),
        (s.previous_prediction(), table.prediction[1, 1, rows]),
        (s.logits(), table.prediction[1, 2, rows]),
        (s.entry(), table.entry[1, rows]),
        (s.timestep, table.timestep[1, rows]),
    ):
        torch.testing.assert_close(mine, want)
    first = signals(table, 1, list(range(5)), NEEDS)
    assert first.previous_hidden() is None and first.previous_prediction() is None
    gaps = [
        [
            float((table.prediction[1, k, r] - table.full[1, r]).square().mean().sqrt())
            for k in range(4)
        ]
        for r in rows
    ]
    torch.testing.assert_close(s.gaps(), torch.tensor(gaps))
    assert s.any(torch.tensor([False, True])) and not s.any(torch.tensor([False]))


@pytest.mark.parametrize("name", list(NEEDS))
def test_what_a_rule_does_not_name_it_cannot_read(name: str) -> None:
    assert set(READ) == set(NEEDS)
    table = SignalTable.made_up(1, 2, 3, classes=4)
    READ[name](signals(table, 2, [0, 2], [name]))
    others = set(NEEDS) - {name}
    with pytest.raises(ConfigError, match=rf"(?s){name}"):
        READ[name](signals(table, 2, [0, 2], others))


def test_something_else_than_a_policy_is_not_walked() -> None:
    @dataclass(frozen=True)
    class Neither(Policy):
        name: ClassVar[str] = "neither"

    with pytest.raises(ConfigError, match=r"Neither.*(Schedule|ExitRule)"):
        SignalTable.made_up().walk(Neither())


# ------------------------------------------------------------------------------- other company


@seeded
def test_a_row_among_others_keeps_all_it_has(seed: int) -> None:
    mine, theirs = SignalTable.made_up(seed=seed), SignalTable.made_up(seed=seed + 1)
    for row in range(mine.batch):
        mixed = mine.only(row, theirs)
        for f in fields(mine):
            a, b, c = (getattr(t, f.name) for t in (mine, theirs, mixed))
            axis = 1 if a.shape[1] == mine.batch else 2
            others = torch.tensor([r for r in range(mine.batch) if r != row])
            assert torch.equal(c.select(axis, row), a.select(axis, row)), f.name
            assert torch.equal(c.index_select(axis, others), b.index_select(axis, others)), f.name
    assert torch.equal(theirs.maps, SignalTable.made_up(seed=seed + 1).maps), "it was changed"


@seeded
def test_rows_in_another_order_leave_in_that_order(seed: int) -> None:
    table = SignalTable.made_up(seed=seed)
    order = torch.randperm(table.batch, generator=torch.Generator().manual_seed(seed))
    policy = UncertaintyThreshold(0.15)
    moved = table.permuted(order).walk(policy)
    assert torch.equal(moved, table.walk(policy)[:, order])
    assert not torch.equal(moved, table.walk(policy)), "the control: all rows are alike"
