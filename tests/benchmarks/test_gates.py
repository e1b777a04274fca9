"""The measurement of gates: what it counts, and how its page reads."""

from __future__ import annotations

import pytest

from benchmarks import gates


def test_every_case_is_measured_and_the_blocks_are_loud_again() -> None:
    found = gates.measure(1)
    assert found.keys() == {"bare", "idle", "module", "never", "fixed", "unsure", "half"}
    assert not gates.Block.quiet
    # A look at each exit costs more than passing it, and a block more than a module that does nothing.
    assert found["unsure"] > found["never"] and found["bare"] > found["module"] > 0


def test_a_page_compares_medians_of_the_rounds() -> None:
    rounds = [dict.fromkeys(("bare", "module", *gates.GOALS, "half"), float(n)) for n in (1, 2, 9)]
    text = gates.page(rounds, [{name: 4.0 for name in rounds[0]}])
    assert "| unsure | 2.00 µs | 4.00 µs | 0.50 | 0.42 |" in text
    assert "| half | 2.00 | 4.00 | - | 1.40 |" in text
    assert "| idle | 2.00 µs | - | - | 0.33 |" in gates.page(rounds, [])


@pytest.mark.slow
def test_a_process_of_its_own_measures_this_tree() -> None:
    assert gates.child(gates.PAGE.parents[2], 1).keys() == gates.measure(1).keys()
