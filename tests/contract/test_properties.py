"""Properties that hold for any depths, batch size and order, found by random search."""

from __future__ import annotations

import functools
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exitkit as ek
from exitkit.policies import ScriptedExit, UncertaintyThreshold
from tests.backbones import case, prediction

NAMES = ("uvit", "sd3", "unet", "folded_frames", "shared_block", "encoder_sequence_first")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def wrapped(name: str) -> ek.ExitModel:
    backbone = case(name)
    args, kwargs = backbone.inputs(3)
    return ek.wrap(backbone.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))


def run(name: str, rows: list[int], depths: list[int]) -> Any:
    model = wrapped(name)
    args, kwargs = case(name).rows(rows)
    model.policy = ScriptedExit(tuple(min(d, len(model.exits) + 1) for d in depths))
    with torch.no_grad():
        return model(*args, **kwargs)


@functools.cache
def alone(name: str, row: int, depth: int) -> Any:
    """The output of one row in a batch of its own."""
    return case(name).select(run(name, [row], [depth]), 0)


batches = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=7)


@QUICK
@given(st.sampled_from(NAMES), batches)
def test_a_row_is_the_same_in_any_company(name: str, batch: list[tuple[int, int]]) -> None:
    rows, depths = [list(column) for column in zip(*batch, strict=True)]
    together = run(name, rows, depths)
    trace = wrapped(name).trace
    limit = len(wrapped(name).exits) + 1
    assert trace.depth[0].tolist() == [min(d, limit) for d in depths]
    for place, (row, depth) in enumerate(batch):
        mine = case(name).select(together, place)
        assert torch.allclose(mine, alone(name, row, depth), atol=2e-5)


@QUICK
@given(st.sampled_from(NAMES), batches)
def test_deeper_rows_run_more_blocks_and_never_more_than_all(
    name: str, batch: list[tuple[int, int]]
) -> None:
    rows, depths = [list(column) for column in zip(*batch, strict=True)]
    run(name, rows, [99] * len(rows))  # first: shapes are known afterwards, no row runs for them
    full = wrapped(name).trace
    assert full.cost == 1.0
    run(name, rows, depths)
    shallow = wrapped(name).trace.block_rows
    run(name, rows, [d + 1 for d in depths])
    deeper = wrapped(name).trace.block_rows
    for path, count in full.block_rows.items():
        assert shallow.get(path, 0) <= deeper.get(path, 0) <= count
    if min(depths) <= len(wrapped(name).exits):
        assert sum(shallow.values()) < sum(deeper.values())


@QUICK
@given(st.sampled_from(NAMES), st.integers(1, 6), st.floats(0, 0.99))
def test_untrained_heads_never_leave(name: str, rows: int, threshold: float) -> None:
    model = wrapped(name)
    args, kwargs = case(name).inputs(rows)
    with torch.no_grad():
        model.policy = UncertaintyThreshold(threshold)
        output = prediction(model(*args, **kwargs))
        assert model.trace.depth.min() == len(model.exits) + 1
        model.policy = ek.policies.NeverExit()
        assert torch.equal(output, prediction(model(*args, **kwargs)))
