"""Families of the policies that look at one step: AdaDiff, BERxiT, BranchyNet, CALM, PABEE."""

from __future__ import annotations

from typing import Any

from exitkit.policies import (
    CALM,
    FULL,
    ConfidenceThreshold,
    CorrectedSchedule,
    EntropyThreshold,
    LearningToExit,
    Patience,
    UncertaintyThreshold,
)
from exitkit.testing import SignalTable
from tests.policies import references as rule
from tests.policies.families import BATCH, CLASSES, EXITS, STEPS, Family, changed, shifted, sweep
from tests.policies.references import Depths, Reference


def plain(reference: Reference) -> Reference:
    """The reference of the article, which knows a threshold and nothing else."""
    return lambda table, threshold, **rest: reference(table, threshold)


def official(theta: float) -> UncertaintyThreshold:
    return UncertaintyThreshold(
        theta, patience=2, patience_until=0.5, minimum_depth=2, batch_mean=True
    )


def never_set_back(
    signals: SignalTable, patience: int, tolerance: float | None, **_: Any
) -> Depths:
    """PABEE with a counter that survives disagreement."""

    def leaves(s: int, i: int, b: int) -> bool:
        agreements = [rule.agree(signals, s, j, b, tolerance) for j in range(2, i + 1)]
        return sum(agreements) == patience

    return rule.first_exit(signals, leaves)


def _usual(count: int = EXITS) -> dict[str, Any]:
    """Means and deviations of three bins."""
    means = tuple(tuple(0.15 + 0.05 * b + 0.02 * k for k in range(count)) for b in range(3))
    return {"means": means, "deviations": ((0.08,) * count, (0.1,) * count, (0.12,) * count)}


OF_ONE_STEP: tuple[Family, ...] = (
    Family(
        "adadiff_paper",
        sweep(UncertaintyThreshold, 0.0, 0.5),
        plain(rule.adadiff_paper),
        changed(rule.adadiff, batch_mean=True),
    ),
    Family(
        "adadiff_official",
        sweep(official, 0.22, 0.28, 13),
        plain(rule.adadiff_official),
        changed(rule.adadiff, patience_until=1.0),
        depths=(2, 3, 4, 5, 6),
        sizes=((EXITS, BATCH), (7, 4), (2, 9)),
    ),
    Family(
        "adadiff_maximum",
        sweep(lambda x: UncertaintyThreshold(x, reduction="max"), 0.05, 0.95),
        rule.adadiff,
        changed(rule.adadiff, reduction="quantile"),
    ),
    Family(
        "adadiff_quantile",
        sweep(lambda x: UncertaintyThreshold(x, reduction="quantile", q=0.7), 0.05, 0.8),
        rule.adadiff,
        shifted(rule.adadiff, "q", 0.02),
    ),
    Family(
        "adadiff_patient",
        sweep(lambda x: UncertaintyThreshold(x, patience=2, patience_until=0.8), 0.05, 0.5),
        rule.adadiff,
        changed(rule.adadiff, patience_until=1.0),
        depths=(2, 3, 4, 5, 6),
    ),
    Family(
        "adadiff_in_time",
        sweep(lambda x: UncertaintyThreshold(0.4, per_timestep=((10.0, 1.0), (500.0, x))), 0, 0.5),
        rule.adadiff,
        changed(rule.adadiff, per_timestep=None),
    ),
    Family(
        "adadiff_of_age",
        sweep(lambda x: UncertaintyThreshold(x, max_age=2, minimum_depth=2), 0.05, 0.6),
        rule.adadiff,
        changed(rule.adadiff, max_age=3),
        depths=(2, 3, 4, 5, 6),
        steps=STEPS,
    ),
    Family(
        "berxit",
        sweep(LearningToExit, 0.0, 0.5),
        rule.berxit,
        lambda t, threshold, per_exit: rule.berxit(t, threshold * 0.97),
    ),
    Family(
        "berxit_per_exit",
        sweep(lambda x: LearningToExit(x, (0.3, 0.35, 0.4, 0.38, 0.45)), 0.2, 1.0),
        rule.berxit,
        changed(rule.berxit, per_exit=(0.45, 0.3, 0.35, 0.4, 0.38)),
        sizes=((EXITS, BATCH), (EXITS, 1)),
    ),
    Family(
        "corrected",
        sweep(
            lambda x: CorrectedSchedule((250.0, 870.0), (1, FULL, 3), **_usual(), limit=x), 0, 2, 5
        )
        + sweep(
            lambda x: CorrectedSchedule((250.0, 870.0), (2, 4, 5), **_usual(), limit=x), 0, 2, 5
        ),
        rule.corrected,
        changed(rule.corrected, limit=1e9),
        sizes=((EXITS, BATCH), (EXITS, 1)),
    ),
    Family(
        "branchynet",
        sweep(EntropyThreshold, 0.4, 1.0),
        rule.branchynet,
        shifted(rule.branchynet, "threshold", 0.03),
        classes=CLASSES,
    ),
    Family(
        "confidence",
        sweep(ConfidenceThreshold, 0.0, 0.9),
        rule.confidence,
        changed(rule.calm, measure="margin"),
        classes=CLASSES,
    ),
    *(
        Family(
            f"calm_{measure}{'_published' if whole else ''}",
            sweep(
                lambda x, m=measure, w=whole: CALM(m, x, whole_batch=w),  # type: ignore[misc]
                *(low_high[1] if whole else low_high[0]),
                13,
            ),
            rule.calm,
            changed(rule.calm, whole_batch=not whole),
            depths=tuple(range(first, EXITS + 2)),
            classes=CLASSES if measure == "margin" else 0,
        )
        for measure, first, *low_high in (
            ("cosine", 2, (0.4, 1.0), (0.4, 0.6)),
            ("margin", 1, (0.0, 0.8), (0.0, 0.15)),
            ("meta", 1, (0.5, 1.0), (0.5, 0.6)),
            ("change", 2, (0.45, 0.95), (0.45, 0.55)),
        )
        for whole in (False, True)
    ),
    Family(
        "calm_decay",
        sweep(lambda x: CALM("meta", x, decay=4.0), 0.5, 1.0),
        rule.calm,
        changed(rule.calm, decay=None),
        steps=STEPS,
    ),
    Family(
        "pabee_classes",
        tuple(Patience(k) for k in (1, 2, 3, 4)),
        rule.pabee,
        never_set_back,
        depths=(2, 3, 4, 5, 6),
        classes=CLASSES,
    ),
    Family(
        "pabee_classes_published",
        tuple(Patience(k, whole_batch=True) for k in (1, 2, 3)),
        rule.pabee,
        changed(rule.pabee, whole_batch=False),
        depths=(2, 3, 4, 5, 6),
        classes=2,
        sizes=((EXITS, 2), (EXITS, 1), (7, 3)),
    ),
    Family(
        "pabee_regression",
        sweep(lambda x: Patience(2, tolerance=x), 0.1, 1.5)
        + sweep(lambda x: Patience(1, tolerance=x), 0.1, 1.5),
        rule.pabee,
        never_set_back,
        depths=(2, 3, 4, 5, 6),
    ),
    Family(
        "pabee_regression_published",
        sweep(lambda x: Patience(1, tolerance=x, whole_batch=True), 1.2, 1.6, 13),
        rule.pabee,
        changed(rule.pabee, whole_batch=False),
        depths=(2, 3, 4, 5, 6),
        sizes=((EXITS, BATCH), (EXITS, 2), (1, 1), (7, 3)),
    ),
)
