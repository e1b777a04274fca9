"""Methods calibrated to budgets that they can meet, nearly meet, or not meet at all."""

from __future__ import annotations

from typing import Any

import pytest

from exitkit.benchmark import calibrated, calibration, methods_for
from exitkit.errors import CalibrationError
from tests import tiny_suites


def test_heads_that_cost_more_than_they_save_do_not_end_a_suite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def refuse(*args: Any, budget: float, **options: Any) -> None:
        asked.append(budget)
        raise CalibrationError("budget is out of reach")

    monkeypatch.setattr(calibration, "calibrate", refuse)
    model = tiny_suites.wrapped("relative")
    suite = tiny_suites.suite().with_steps(2)
    for name in ("calm meta", "adadiff relative"):
        method = methods_for([name])[0]
        entry, note = calibrated(suite, method, model, 0.5, 2)
        assert asked[-1] == 1.0 and asked[-6] == 0.5 and len(set(asked)) == 6
        cheapest = {"calm meta": 0.0, "adadiff relative": 1.0}[name]
        assert entry.acting.threshold == cheapest  # type: ignore[union-attr]
        assert note is not None and "costs more than the full model" in note
    with pytest.raises(CalibrationError, match="static at 0.5: no setting up to the full cost"):
        calibrated(suite, methods_for(["static"])[0], model, 0.5, 2)
