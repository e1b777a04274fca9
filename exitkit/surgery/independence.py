"""Whether the rows of a batch keep apart, seen from dry runs of two and of three rows."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from exitkit.errors import TracingError
from exitkit.surgery.batch_axes import learn_leaves
from exitkit.surgery.counted_run import seeded_run
from exitkit.surgery.dry_run import DryRun, LeafRecord
from exitkit.surgery.example_batch import CHANGES, ExampleBatch
from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves

ROWS, MORE = 2, 3  # rows of the dry runs
FOUR = 4  # rows in which halves and every second row can be told from neighbours


def coupled(base: DryRun, perturbed: DryRun, other: DryRun) -> bool:
    """Whether a change of row 0 reaches another row of any leaf on the way.

    Inside a call whose own output keeps rows apart anything goes: experts are handed the tokens of
    all rows in one heap, and give each its own back.

    Arguments:
        base: Run of two rows.
        perturbed: The same with row 0 of the noisy input changed.
        other: Run of three rows.

    Returns:
        True if rows depend on each other.
    """
    apart: set[int] = set()
    for i, (a, b, c) in enumerate(zip(base.calls, perturbed.calls, other.calls, strict=True)):
        if a.parent in apart:
            apart.add(i)
            continue
        found = learn_leaves(a.outputs, b.outputs, c.outputs, ROWS, MORE)
        judged = [_reaches(leaf, a.outputs[leaf.path], b.outputs[leaf.path]) for leaf in found]
        if True in judged:
            return True
        if i and False in judged:
            apart.add(i)
    return False


def same_row(base: DryRun, other: DryRun, outputs: tuple[Leaf, ...]) -> bool:
    """Whether row 0 of the output is the same among two and among three rows.

    Arguments:
        base: Run of two rows.
        other: Run of three rows, the same first.
        outputs: Leaves of the output.

    Returns:
        False if an argument was cut the wrong way, and mixes rows silently.
    """
    axes = {leaf.path: leaf for leaf in outputs}
    many = dict(leaves(other.output))
    for path, few in leaves(base.output):
        leaf = axes[path]
        if leaf.axis is None or leaf.tiled or not few.is_floating_point():
            continue
        x, y = (t.narrow(leaf.axis, 0, leaf.fold).float() for t in (few, many[path]))
        # Kernels of another batch size round differently; an argument cut the wrong way does more.
        allowed = 1e-3 if few.dtype in (torch.float32, torch.float64) else 0.1
        if x.shape == y.shape and float((x - y).norm()) > allowed * float(x.norm()):
            return False
    return True


def grouped(model: nn.Module, batch: ExampleBatch, base: DryRun, outputs: tuple[Leaf, ...]) -> bool:
    """Whether a batch of four is taken apart into groups, which two and three rows do not show.

    Arguments:
        model: The backbone, inside of `undisturbed`.
        batch: The example.
        base: Run of two rows.
        outputs: Leaves of the output.

    Returns:
        True if a change of row 0 reaches another of four rows.
    """
    changed = None
    for change in CHANGES if batch.batch > 1 else CHANGES[:2]:
        with suppress(TracingError):  # noise may break what the backbone insists on
            changed = seeded_run(model, batch.perturbed(FOUR, change), fingerprints=False)
            break
    if changed is None or _alike(base, changed, outputs, ROWS):
        return False
    # Noise that a network draws for each row differs from that of two rows, too, but not from this.
    return not _alike(
        seeded_run(model, batch.rows(FOUR), fingerprints=False), changed, outputs, FOUR
    )


def _alike(first: DryRun, four: DryRun, outputs: tuple[Leaf, ...], rows: int) -> bool:
    """Whether rows 1 to 3 of four, the first two over and over, are as in a run of so many rows."""
    axes, many = {leaf.path: leaf for leaf in outputs}, dict(leaves(four.output))
    for path, few in leaves(first.output):
        leaf = axes.get(path)
        if leaf is None or leaf.axis is None or leaf.tiled or not few.is_floating_point():
            continue
        allowed = 1e-3 if few.dtype in (torch.float32, torch.float64) else 0.1
        for row in range(1, FOUR if path in many else 1):
            x = few.narrow(leaf.axis, row % rows * leaf.fold, leaf.fold).float()
            y = many[path].narrow(leaf.axis, row * leaf.fold, leaf.fold).float()
            if x.shape == y.shape and float((x - y).norm()) > allowed * float(x.norm()):
                return False
    return True


def _reaches(leaf: Leaf, first: LeafRecord, second: LeafRecord) -> bool | None:
    """Whether rows beside row 0 of a leaf have moved; None where that cannot be told."""
    if leaf.axis is None or not leaf.moved or leaf.tiled or first.shape != second.shape:
        return None
    if first.prints is None or second.prints is None:
        return None
    rest = slice(leaf.fold, leaf.fold * ROWS)
    x, y = first.prints[leaf.axis][rest], second.prints[leaf.axis][rest]
    # Rounding may differ with what is beside a row; a real dependence is far larger.
    return bool(((x - y).abs() > 1e-4 * (x.abs() + y.abs() + 1e-6)).any())


def row_list(base: DryRun, other: DryRun) -> str | None:
    """Path of a list in the output that has one tensor a row, or None.

    Arguments:
        base: Run of two rows.
        other: Run of three rows.

    Returns:
        The path of the first such list.
    """
    few, many = base.calls[0].outputs, other.calls[0].outputs
    for path in few:
        stem, bracket, end = path.rpartition("[0]")
        if bracket and not end and f"{stem}[{ROWS}]" not in few and f"{stem}[{ROWS}]" in many:
            return stem
    return None
