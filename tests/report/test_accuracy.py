"""Accuracy over cost: drawn where there is accuracy, and not elsewhere."""

from __future__ import annotations

from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Interval, Row
from exitkit.report import figures, page
from exitkit.report.accuracy import accuracy_over_cost
from tests.report import results


def classified(name, kind, cost, right, **more):
    """A row of classified images."""
    zero = Interval(0.0, 0.0, 0.0)
    accuracy = Interval(right, right - 0.01, right + 0.01)
    more = {"family": "" if kind == "full" else name, "distance": zero, **more}
    return Row(name=name, kind=kind, count=500, cost=cost, accuracy=accuracy, **more)


def rows():
    gap = Interval(-0.004, -0.01, 0.002)
    return (
        classified("full", "full", 1.0, 0.98),
        classified("entropy", "policy", 0.5, 0.976, model="branchynet", against_full=gap),
        classified("entropy, always exit 2", "fixed exit", 0.5, 0.95, model="branchynet"),
    )


def test_rows_with_accuracy_are_drawn_over_their_cost():
    picture = accuracy_over_cost(rows())
    assert picture is not None and picture.name == "accuracy"
    assert "entropy: 97.6% at 0.50" in picture.alt
    assert accuracy_over_cost(results.comparison().rows) is None


def test_the_page_of_classifiers_says_what_a_saving_costs():
    comparison = Comparison(rows=rows())
    drawn = figures(comparison)
    assert [figure.name for figure in drawn] == ["accuracy"], "no trade-off of distances"
    text = page.page(comparison, drawn)
    assert "is right on 97.6% of the images, -0.4 points against the full model" in text
    assert "(-1.0 to +0.2)" in text
    assert "97.6 % <span" in text, "the interval is set apart in the table"
