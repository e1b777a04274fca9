"""Families of the policies that go by time, by earlier steps, or by the full model."""

from __future__ import annotations

from exitkit.policies import (
    FULL,
    FirstBlockSimilarity,
    FixedExit,
    Interval,
    NeverExit,
    Oracle,
    ScriptedExit,
    StepSchedule,
    TimestepSchedule,
)
from exitkit.testing import SignalTable
from tests.policies import references_over_time as over_time
from tests.policies.families import BATCH, EXITS, STEPS, Family, changed, shifted, sweep
from tests.policies.references import Depths

COSTS = tuple(i / (EXITS + 1) for i in range(1, EXITS + 1))
WEIGHTS = ((300.0, 0.25), (870.0, 1.0), (1000.0, 3.0))
THIS_SIZE = ((EXITS, BATCH),)


def edge_below(signals: SignalTable, edges: tuple[float, ...], per_bin: tuple[int, ...]) -> Depths:
    """An edge belongs to the bin below it."""
    return over_time.by_timestep(signals, [edge + 1e-3 for edge in edges], per_bin)


OVER_TIME: tuple[Family, ...] = (
    Family("never", (NeverExit(),), over_time.never, changed(over_time.static, depth=5), (6,)),
    Family(
        "static",
        tuple(map(FixedExit, (1, 2, 3, 4, 5, FULL))),
        over_time.static,
        shifted(over_time.static, "depth", -1),
        sizes=((EXITS, BATCH), (EXITS, 1), (7, 4)),
    ),
    Family(
        "scripted",
        (ScriptedExit((1, 5, 2, FULL, 3, 4)), ScriptedExit((6, 1, 1, 2, 7, 5))),
        over_time.scripted,
        lambda t, per_row: over_time.scripted(t, per_row[::-1]),
        places=True,
        sizes=THIS_SIZE,
    ),
    Family(
        "timestep_schedule",
        (
            TimestepSchedule((10.0, 500.0, 870.0), (4, 1, 3, FULL)),
            TimestepSchedule((380.0,), (2, 5)),
        ),
        over_time.by_timestep,
        edge_below,
    ),
    Family(
        "step_schedule",
        (StepSchedule((FULL, 1, 4)), StepSchedule((2, 3, 5))),
        over_time.by_step,
        lambda t, per_step: over_time.by_step(t, (*per_step[1:], per_step[0])),
    ),
    Family(
        "interval",
        tuple(Interval(k, depth) for k in (1, 2, 3, 4) for depth in (1, 2, 3, 4, 5, FULL)),
        over_time.deepcache,
        shifted(over_time.deepcache, "interval", 1),
        steps=STEPS,
    ),
    Family(
        "first_block_cache",
        sweep(lambda x: FirstBlockSimilarity(x, depth=1), 0.0, 1.4, 7)
        + sweep(lambda x: FirstBlockSimilarity(x, depth=3), 0.0, 1.4, 7),
        over_time.first_block,
        changed(over_time.first_block, accumulate=True, polynomial=(0.0, 1.0, 0.0)),
        depths=(1, 3, 6),
        steps=STEPS,
    ),
    Family(
        "teacache",
        sweep(lambda x: FirstBlockSimilarity(x, accumulate=True), 0.0, 4.0, 7)
        + sweep(lambda x: FirstBlockSimilarity(x, True, (0.5, -0.2, 0.3, 0.1), 2), 0.0, 3.0, 7),
        over_time.first_block,
        changed(over_time.first_block, accumulate=False),
        depths=(1, 2, 6),
        steps=STEPS,
    ),
    Family(
        "oracle_delta",
        sweep(lambda x: Oracle(delta=x), 1.2, 2.0),
        over_time.oracle,
        shifted(over_time.oracle, "delta", 0.03),
    ),
    Family(
        "oracle_delta_weighted",
        sweep(lambda x: Oracle(delta=x, weights=WEIGHTS), 0.2, 5.0),
        over_time.oracle,
        changed(over_time.oracle, weights=None),
    ),
    Family(
        "oracle_price",
        sweep(lambda x: Oracle(price=x, costs=COSTS), 0.0, 5.0),
        over_time.oracle,
        shifted(over_time.oracle, "price", 0.2),
        sizes=((EXITS, BATCH), (EXITS, 1)),
        converging=True,
    ),
    Family(
        "oracle_price_weighted",
        sweep(lambda x: Oracle(price=x, costs=COSTS, weights=WEIGHTS), 0.1, 4.0),
        over_time.oracle,
        changed(over_time.oracle, weights=None),
        sizes=((EXITS, BATCH), (EXITS, 1)),
        converging=True,
    ),
)
