"""The vocabulary of needs names signals that there are, and both kinds of signals have them all."""

from __future__ import annotations

import re

import pytest

from exitkit.execution.signals import ExitSignals
from exitkit.policies import NEEDS, Signals
from exitkit.testing.signals import TableSignals

ALWAYS = {"exit", "exits", "batch", "rows", "timestep", "step", "steps", "memory", "any"}
MEMBERS = {name for name in vars(Signals) if not name.startswith("_")}


def test_every_signal_is_named_by_one_need_or_always_there() -> None:
    named = {name for text in NEEDS.values() for name in re.findall(r"`(\w+)(?:\(\))?`", text)}
    assert named | ALWAYS == MEMBERS and not named & ALWAYS


@pytest.mark.parametrize("signals", [ExitSignals, TableSignals])
def test_the_signals_of_models_and_of_tables_have_them_all(signals: type) -> None:
    code = signals.__init__.__code__  # type: ignore[misc]
    assert MEMBERS <= set(dir(signals)) | set(code.co_names)
