"""The contract of a wrapped backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exitkit.config import ExitConfig
from exitkit.model import ExitModel
from exitkit.modes.snapshot import preserved_state
from exitkit.pipelines.verbs import unwrap, wrap
from exitkit.policies.fixed import FixedExit, ScriptedExit
from exitkit.policies.never import NeverExit
from exitkit.policies.rule import ExitRule
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import Inputs
from exitkit.testing.batches import Batch
from exitkit.testing.contract import equal, require
from exitkit.testing.counting import RowCounter
from exitkit.testing.landing import (
    check_another_size,
    check_heads,
    check_unchanged,
    check_untrained,
)
from exitkit.testing.packed import check_whole
from exitkit.testing.snapshot import Snapshot
from exitkit.tree import copied, leaves


def check_backbone(
    model: nn.Module,
    example_inputs: Any,
    *,
    config: str | ExitConfig = "relative",
    adapter: Adapter | None = None,
    atol: float = 2e-5,
) -> None:
    """Wraps a backbone, checks every promise of a wrapped model, and unwraps it.

    What an exit lands moves the output and comes from its own head; an untrained exit through the tail
    is the backbone with the blocks passed over; a carried exit gives the full output where a step is
    repeated exactly; another size than the example's gives what the backbone gives, or a named error.
    Afterwards the whole state of the model is what it was: weights, buffers, modes, hooks, attributes and
    what hangs on them, but for what its own forward changes.

    Of a backbone without a batch axis (`Adapter(batched=False)`) the example is the one row. What
    speaks of other rows is left out; instead, every exit is compared with the backbone itself.

    Arguments:
        model: The backbone, in eval mode. It is left as it was.
        example_inputs: What it is called with, as for `wrap`; random, at least one row.
        config: Preset name or config to wrap it with.
        adapter: Declarations about the architecture; looked up if None.
        atol: Largest absolute difference between a row in a batch and the same row alone: kernels
            for other batch sizes round differently.

    Raises:
        ContractError: At the first broken promise.
        ExitKitError: If the backbone cannot be wrapped at all.

    Example:
        >>> blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        >>> check_backbone(blocks.eval(), torch.randn(4, 8))
    """
    inputs = Inputs.of(example_inputs)
    with torch.no_grad():
        bare = _call(model, inputs)
        name = type(model).__name__
        with preserved_state(model) as run:
            again = _call(model, inputs)
        require(
            equal(bare, again),
            f"{name}: two runs on the same inputs differ, so nothing can be compared. "
            "Call model.eval() and pass generators or seeds explicitly.",
        )
        before = Snapshot(model, own=run.left)
        wrapped = wrap(model, config, example_inputs=example_inputs, adapter=adapter)
        try:
            _check_untouched(model, wrapped, inputs, bare)
            wrapped.heads.mark_fitted(uncertainty=False)  # exits are checked as they start
            batch = Batch(wrapped, inputs)
            _check_exits(batch, bare)
            if wrapped.plan.batched:
                _check_rows(batch, atol)
                _check_permutation(batch, atol)
                _check_other_sizes(batch, atol)
            else:
                check_whole(batch, atol)
            _check_counts(batch)
            check_heads(batch, atol)
            check_untrained(batch, atol)
            check_unchanged(batch)
            check_another_size(batch)
        finally:
            returned = unwrap(wrapped)
        require(returned is model, f"{name}: unwrap returned another object.")
        before.compare(model)
        require(
            equal(bare, _call(model, inputs)),
            f"{name}: the output after unwrap differs from the one before wrap.",
        )


def _call(model: nn.Module, inputs: Inputs) -> Any:
    """The output, with arguments of its own: a forward may take lists apart or write into tensors."""
    args, kwargs = copied((inputs.args, inputs.kwargs))
    return model(*args, **kwargs)


def _check_untouched(model: nn.Module, wrapped: ExitModel, inputs: Inputs, bare: Any) -> None:
    """The backbone on its own, NeverExit and untrained heads all give the bare output."""
    name = type(model).__name__
    require(
        equal(bare, _call(model, inputs)),
        f"{name}: while wrapped, the backbone called on its own gives another output.",
    )
    untrained = wrapped.policy
    wrapped.policy = NeverExit()
    require(
        equal(bare, _call(wrapped, inputs)),
        f"{name}: with NeverExit the output is not bit-identical to the bare backbone's.",
    )
    if isinstance(untrained, ExitRule) and "uncertainty" in untrained.reads():
        wrapped.policy = untrained
        with wrapped.trajectory():
            output = _call(wrapped, inputs)
        require(
            equal(bare, output) and int(wrapped.trace.depth.min()) == len(wrapped.exits) + 1,
            f"{name}: untrained uncertainty heads let rows leave under {untrained}.",
        )


def _check_exits(batch: Batch, bare: Any) -> None:
    """Every exit gives an output of the same type, shapes and dtypes, and finite."""
    require(batch.exits > 0, f"{batch.name}: the wrapped model has no exit.")
    rows = range(batch.count)
    full = batch.run(rows, NeverExit())
    expected = [(path, tuple(t.shape), t.dtype) for path, t in leaves(full)]
    for depth in range(1, batch.exits + 1):
        output = batch.run(rows, FixedExit(depth))
        found = [(path, tuple(t.shape), t.dtype) for path, t in leaves(output)]
        where = f"{batch.name}: exit {depth} ({batch.model.exits[depth - 1].path})"
        require(
            type(output) is type(bare) and found == expected,
            f"{where} gives {type(output).__name__} {found}, the bare backbone "
            f"{type(bare).__name__} {expected}.",
        )
        require(
            all(bool(t.isfinite().all()) for _, t in leaves(output) if t.is_floating_point()),
            f"{where} gives an output that is not finite.",
        )


def _check_rows(batch: Batch, atol: float) -> None:
    """A row that left at some depth equals that row alone at that depth, and no other depth."""
    rows = range(batch.count)
    full = batch.run(rows, NeverExit())
    require(
        batch.difference(batch.row(full, 0), batch.row(full, 1)) > 10 * atol,
        f"{batch.name}: rows 0 and 1 of the example give the same output, so mixed-up rows would "
        "not be noticed. Pass random example_inputs.",
    )
    for row in rows:
        gap = batch.difference(batch.row(full, row), batch.row(batch.run([row], NeverExit()), 0))
        require(
            gap <= atol,
            f"{batch.name}: without any exit, row {row} depends on its batch mates (it differs by "
            f"{gap:.1e} from the same row alone, allowed {atol:.1e}). Batch statistics? Call "
            "model.eval(); a backbone that mixes rows cannot leave row by row.",
        )
    for depths in batch.scripts():
        output = batch.scripted(rows, depths)
        for row, depth in enumerate(depths):
            mine = batch.row(output, row)
            gap = batch.difference(mine, batch.row(batch.scripted([row], [depth]), 0))
            require(
                gap <= atol,
                f"{batch.name}: row {row} leaving at depth {depth} among depths {depths} differs "
                f"by {gap:.1e} from the same row alone (allowed {atol:.1e}).",
            )
            if depth > batch.exits:
                continue
            control = batch.difference(mine, batch.row(batch.scripted([row], [depth + 1]), 0))
            require(
                control > atol,
                f"{batch.name}: row {row} has the same output at depths {depth} and {depth + 1}, "
                "so a wrong depth would not be noticed. Zero-initialised gates? Perturb the "
                "parameters of an untrained backbone first.",
            )


def _check_permutation(batch: Batch, atol: float) -> None:
    """Rows in another order give the outputs in that order."""
    order = [*range(1, batch.count), 0]
    for depths in batch.scripts():
        plain = batch.scripted(range(batch.count), depths)
        permuted = batch.scripted(order, [depths[row] for row in order])
        for place, row in enumerate(order):
            gap = batch.difference(batch.row(plain, row), batch.row(permuted, place))
            require(
                gap <= atol,
                f"{batch.name}: row {row} changes by {gap:.1e} when the batch is permuted "
                f"(depths {depths}, allowed {atol:.1e}).",
            )


def _check_other_sizes(batch: Batch, atol: float) -> None:
    """Batches of another size than the example's work, and their rows stay what they are."""
    reference = batch.run(range(batch.count), FixedExit(1))
    for rows in ([1, 0], [*range(batch.count), 0]):
        output = batch.run(rows, FixedExit(1))
        for place, row in enumerate(rows):
            gap = batch.difference(batch.row(reference, row), batch.row(output, place))
            require(
                gap <= atol,
                f"{batch.name}: in a batch of {len(rows)} instead of {batch.count}, row {row} "
                f"changes by {gap:.1e} (allowed {atol:.1e}).",
            )


def _check_counts(batch: Batch) -> None:
    """The trace says how many rows every block really ran."""
    counter = RowCounter(batch)
    for depths in batch.scripts():
        counted = counter.count(range(batch.count), ScriptedExit(tuple(depths)))
        claimed = dict.fromkeys(counted, 0)
        for stage in batch.model.plan.stages:
            for call in stage.calls:
                if call.path in claimed:
                    claimed[call.path] += batch.model.trace.block_rows[stage.path]
        require(
            counted == claimed,
            f"{batch.name}: with depths {depths} the blocks ran {counted} rows, the trace says "
            f"{claimed}.",
        )
        require(
            not counted
            or min(depths) > batch.exits
            or sum(counted.values()) < sum(counter.full.values()),
            f"{batch.name}: with depths {depths} no block ran fewer rows than without exits.",
        )
