"""What a rule is shown on a model: only what it names, at once or not at all, and counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.errors import ConfigError, NonFiniteWarning
from exitkit.execution.guidance import GuidanceGroups
from exitkit.policies import (
    CALM,
    NEEDS,
    CorrectedSchedule,
    ExitRule,
    FirstBlockSimilarity,
    FixedExit,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    Signals,
    UncertaintyThreshold,
)
from exitkit.testing import SignalTable
from tests.backbones import case

READ: dict[str, Callable[[Signals], Any]] = {
    "uncertainty": lambda s: s.uncertainty(),
    "hidden": lambda s: s.hidden(),
    "previous_hidden": lambda s: s.previous_hidden(),
    "prediction": lambda s: s.prediction(),
    "previous_prediction": lambda s: s.previous_prediction(),
    "logits": lambda s: s.logits(),
    "entry": lambda s: s.entry(),
    "age": lambda s: s.age,
    "state": lambda s: s.state,
    "oracle": lambda s: s.gaps(),
}


@dataclass(frozen=True)
class _Reader(ExitRule):
    """Reads one signal and lets nobody leave."""

    what: str
    named: bool = True
    seen: list[Signals] = field(default_factory=list)

    name: ClassVar[str] = "reader"
    needs: ClassVar[frozenset[str]] = frozenset(NEEDS)

    def reads(self) -> frozenset[str]:
        return frozenset({self.what} if self.named else set())

    def decide(self, signals: Signals) -> Tensor:
        self.seen.append(signals)
        READ[self.what](signals)
        return torch.zeros_like(signals.rows, dtype=torch.bool)


@dataclass(frozen=True)
class _Silent(_Reader):
    """Names nothing at all."""

    needs: ClassVar[frozenset[str]] = frozenset()


def made(name: str = "uvit", preset: str = "relative") -> tuple[ek.ExitModel, tuple[Tensor, ...]]:
    backbone = case(name)
    args, _ = backbone.inputs(3)
    model = ek.wrap(backbone.make(), preset, example_inputs=args)
    assert isinstance(model, ek.ExitModel)
    return model, args


def spread() -> tuple[ek.ExitModel, tuple[Tensor, ...]]:
    """A model whose exits count, and tell rows apart."""
    model, args = made()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for parameter in model.heads.uncertainty.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.heads.mark_fitted()
    return model, args


def run(model: ek.ExitModel, args: tuple[Tensor, ...], policy: ek.policies.Policy) -> Tensor:
    model.policy = policy
    with torch.no_grad(), model.trajectory():
        output: Tensor = model(*args)
        if isinstance(policy, FirstBlockSimilarity):  # compares steps
            output = model(args[0], *(t - 1 for t in args[1:]))
    return output


def test_every_signal_is_tried() -> None:
    assert READ.keys() == NEEDS.keys()


@pytest.mark.parametrize("what", READ)
def test_an_unnamed_signal_is_refused_at_the_first_exit_in_model_and_table_alike(what: str) -> None:
    model, args = made()
    table = SignalTable.made_up(classes=4)
    for rule, message in (
        (
            _Silent(what, False),
            rf"^_Silent: .*'{what}' without naming.*frozenset\({{\"{what}\"}}\)",
        ),
        (
            _Reader(what, False),
            rf"^_Reader: .*'{what}', which _Reader.needs names but _Reader.reads",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            run(model, args, rule)
        assert [s.exit for s in rule.seen] == [1]
        with pytest.raises(ConfigError, match=message):
            table.walk(rule)
    # Negative control: named, it is there.
    table.walk(_Reader(what))
    if what != "logits":
        run(model, args, _Reader(what))


def test_needs_are_narrowed_to_the_fields() -> None:
    assert CALM("meta", 0.9).reads() == {"uncertainty"}
    assert CALM("cosine", 0.9).reads() == {"hidden", "previous_hidden"}
    assert Patience(2).reads() == {"logits", "previous_prediction"}
    assert Patience(2, tolerance=0.1).reads() == {"prediction", "previous_prediction"}
    assert UncertaintyThreshold(0.1).reads() == {"uncertainty"}
    assert UncertaintyThreshold(0.1, max_age=2).reads() == {"uncertainty", "age"}


def test_every_look_of_the_host_is_counted() -> None:
    model, args = made()
    exits = len(model.exits)
    # One look at the mask an exit, and one at the end whether all uncertainties are finite.
    run(model, args, UncertaintyThreshold(1e-9))
    assert model.trace.host_checks == exits + 1
    run(model, args, _Reader("hidden"))
    assert model.trace.host_checks == exits
    usual = ((0.5,) * exits,)
    run(model, args, CorrectedSchedule((), (1_000_000,), usual, usual))
    # One more whether a row is near its exit; where none is, no uncertainty is read.
    assert model.trace.host_checks == 2 * exits + 1
    run(model, args, UncertaintyThreshold(0.0))
    assert model.trace.host_checks == 0 and model.trace.cost == pytest.approx(1.0)


POLICIES = [
    UncertaintyThreshold(0.5),
    UncertaintyThreshold(0.55, batch_mean=True),
    CALM("cosine", 0.5),
    CALM("change", 0.3),
    CALM("meta", 0.4, whole_batch=True),
    CALM("change", 0.3, whole_batch=True),
    Patience(1, tolerance=2.0),
    Patience(1, tolerance=3.0, whole_batch=True),
    LearningToExit(0.5),
    Oracle(delta=1.0),
    Oracle(price=1.0, costs=(0.2, 0.4, 0.6, 0.8)),
    CorrectedSchedule((), (1,), ((0.5,) * 4,), ((0.5,) * 4,)),
    FirstBlockSimilarity(1e9),
    FixedExit(2),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_row_of_nan_harms_no_other(policy: Policy) -> None:
    """The others leave where they do without it, with the same output; it runs to the end, and is named."""
    model, args = spread()
    others = [row for row in range(len(args[0])) if row != 1]
    expected = run(model, tuple(a[others] for a in args), policy)
    depths = model.trace.depth[-1]
    noisy = args[0].clone()
    noisy[1] = torch.nan
    # A rule that reads no uncertainty sees it at the last exit, where a broken row comes.
    seen = "exit 4" if isinstance(policy, ExitRule) else ""
    seen = "exit 1" if seen and "uncertainty" in policy.reads() else seen
    named = pytest.warns(NonFiniteWarning, match=rf"{seen} \('.*'\).* for rows \[1\]")
    with named if seen else nullcontext():
        found = run(model, (noisy, *args[1:]), policy)
    after = model.trace.depth[-1]
    assert torch.equal(after[others], depths)
    assert depths.min() < len(model.exits) + 1, "no row left, so nothing was tried"
    assert after[1] == (2 if isinstance(policy, FixedExit) else len(model.exits) + 1)
    assert torch.allclose(found[others], expected, atol=2e-5)
    assert not found[1].isfinite().any()
    assert all(mean == mean for mean in model.trace.uncertainty.values())


def test_copies_of_a_row_of_nan_are_copies() -> None:
    x = torch.randn(3, 2)
    x[1] = torch.nan
    assert GuidanceGroups.of(torch.cat([x, x]), None).copies == 2
    assert GuidanceGroups.of(torch.cat([x, x + 1]), None).copies == 1


def test_nothing_of_a_forward_outlives_it() -> None:
    import gc
    import weakref

    model, args = made()

    @dataclass(frozen=True)
    class Watch(_Reader):
        refs: list[Any] = field(default_factory=list)

        def decide(self, signals: Signals) -> Tensor:
            signals.previous_hidden()
            self.refs.append(weakref.ref(signals))
            return torch.zeros_like(signals.rows, dtype=torch.bool)

    rule = Watch("previous_hidden")
    gc.collect()
    gc.disable()
    try:
        run(model, args, rule)
        assert all(ref() is None for ref in rule.refs)  # no circle that waits for the collector
    finally:
        gc.enable()
