"""The trade-off figure: which names are written."""

from __future__ import annotations

from exitkit.evaluation.rows import Interval, Kind, Row
from exitkit.report import tradeoff
from exitkit.report.tradeoff import _labels
from tests.report import results


def row(name: str, kind: Kind, family: str, cost: float) -> Row:
    """A row at a cost."""
    return Row(
        name=name,
        kind=kind,
        family=family,
        count=4,
        cost=cost,
        distance=Interval(0.1, 0.09, 0.11),
    )


def test_a_curve_bears_its_name_once_and_so_does_its_network_in_full() -> None:
    rows = [row(f"calm at {b}", "policy", "calm", b) for b in (0.4, 0.6, 0.8)]
    rows += [row("calm at 0.4, no exit", "no exit", "calm", 1.0)]
    rows += [row("static at 0.5", "policy", "static", 0.5)]
    rows += [row("static at 0.5, no exit", "no exit", "static", 1.0)]
    names = [name for _, name in _labels(rows)]
    assert names == ["calm", "calm, no exit", "static at 0.5", "static at 0.5, no exit"]


def test_of_many_rows_policies_alone_are_named() -> None:
    few = [row(f"p{i}", "policy", f"p{i}", 0.5) for i in range(8)]
    few += [row(f"p{i}, its schedule", "mode schedule", f"p{i}", 0.5) for i in range(8)]
    assert len(_labels(few)) == 16
    more = [*few, row("p8", "policy", "p8", 0.5), row("small model", "network", "small", 0.2)]
    assert [name for _, name in _labels(more)] == [*(f"p{i}" for i in range(9)), "small model"]


def test_a_curve_has_one_label_and_many_step_counts_too():
    """A method at several budgets is one line, named once; so are step counts beyond a few."""
    rows = [
        results.row("mine at 0.7", "policy", "mine", 0.7, 0.1),
        results.row("mine at 0.5", "policy", "mine", 0.5, 0.2),
        results.row("other", "policy", "other", 0.5, 0.3),
        *(results.row(f"fewer steps ({n})", "fewer steps", "", n / 10, 1 / n) for n in (7, 5, 4)),
    ]
    written = {text: r.cost for r, text in tradeoff._labels(rows)}
    assert written["mine"] == 0.5 and "other" in written and "mine at 0.7" not in written
    assert sum(text.startswith("fewer steps (") for text in written) == 3
    more = [results.row(f"fewer steps ({n})", "fewer steps", "", n / 10, 1 / n) for n in (3, 2)]
    written = {text: r.cost for r, text in tradeoff._labels(rows + more)}
    assert written["fewer steps"] == 0.2
    assert not any(text.startswith("fewer steps (") for text in written)
    picture = tradeoff.tradeoff(rows + more)
    assert picture is not None and "mine at 0.7: 0.1 at 0.70" in picture.alt
