"""Learns, from dry runs with two batch sizes, where the rows of each tensor are."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.surgery.dry_run import LeafRecord, moved, moved_entries
from exitkit.surgery.spec import Leaf


def learn_leaf(
    path: str,
    base: LeafRecord,
    perturbed: LeafRecord | None,
    other: LeafRecord | None,
    batch: int,
    other_batch: int,
    further: Sequence[LeafRecord] = (),
) -> Leaf:
    """Compares one leaf between runs.

    The axis that grows with the batch is the batch axis; its growth gives the fold factor and what
    does not grow is a constant tail. With only row 0 perturbed, the entries that moved tell whether
    folded entries of a row are adjacent or tiled.

    Arguments:
        path: Address of the leaf.
        base: The leaf at `batch` rows.
        perturbed: The leaf at `batch` rows with row 0 of the noisy input changed.
        other: The leaf at `other_batch` rows.
        batch: Rows of the first two runs.
        other_batch: Rows of the third run.
        further: The leaf with the last row of other arguments changed, at `batch` rows.

    Returns:
        The description of the leaf.
    """
    axis, fold, tail = None, 1, 0
    if other is not None and len(other.shape) == len(base.shape):
        for a, (small, large) in enumerate(zip(base.shape, other.shape, strict=True)):
            grown, odd = divmod(large - small, other_batch - batch)
            if grown > 0 and not odd and small - grown * batch >= 0:
                axis, fold, tail = a, grown, small - grown * batch
                break
    did_move = perturbed is not None and moved(base, perturbed)
    tiled = False
    if axis is not None and fold > 1:
        first = moved_entries(base, perturbed, axis) if perturbed is not None else []
        last = [e for run in further for e in moved_entries(base, run, axis)]
        # Adjacent entries of row 0 are the first ones, those of the last row the last.
        tiled = any(fold <= e < fold * batch for e in first)
        tiled = tiled or any(e < fold * (batch - 1) for e in last)
    return Leaf(
        path, base.shape, str(base.dtype).removeprefix("torch."), axis, fold, tail, tiled, did_move
    )


def whole_leaf(path: str, base: LeafRecord, perturbed: LeafRecord | None) -> Leaf:
    """Describes one leaf of a backbone without a batch axis, where all entries belong to one row.

    Arguments:
        path: Address of the leaf.
        base: The leaf.
        perturbed: The leaf with the noisy input changed.

    Returns:
        The description. A leading axis of one entry, as latents have it, is the axis of that row.
    """
    did_move = perturbed is not None and moved(base, perturbed)
    dtype, shape = str(base.dtype).removeprefix("torch."), base.shape
    if not shape:
        return Leaf(path, shape, dtype, moved=did_move)
    # A matrix of one row is a sequence that happens to have one token.
    whole = shape[0] != 1 or len(shape) < 3
    return Leaf(path, shape, dtype, 0, max(shape[0], 1), moved=did_move, whole=whole)


def learn_leaves(
    base: dict[str, LeafRecord],
    perturbed: dict[str, LeafRecord],
    other: dict[str, LeafRecord],
    batch: int,
    other_batch: int,
    further: Sequence[dict[str, LeafRecord]] = (),
) -> tuple[Leaf, ...]:
    """Describes all leaves of one call, in order."""
    return tuple(
        learn_leaf(
            path,
            leaf,
            perturbed.get(path),
            other.get(path),
            batch,
            other_batch,
            [run[path] for run in further if path in run],
        )
        for path, leaf in base.items()
    )
