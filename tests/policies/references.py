"""Naive readings of every policy's rule: plain loops over recorded signals, one row at a time.

Nothing here uses the package. A reference takes a table of signals and the fields of a policy by name
and returns depths as nested lists, (steps, rows), where K + 1 means that the row ran to the end.
Arithmetic on the signals of one row is torch's where float32 rounding could decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Depths = list[list[int]]


class Table(Protocol):
    """The tensors that references read; see `exitkit.testing.SignalTable`."""

    @property
    def timestep(self) -> Tensor: ...

    @property
    def maps(self) -> Tensor: ...

    @property
    def hidden(self) -> Tensor: ...

    @property
    def entry(self) -> Tensor: ...

    @property
    def prediction(self) -> Tensor: ...

    @property
    def full(self) -> Tensor: ...


Reference = Callable[..., Depths]


def size(table: Table) -> tuple[int, int, int]:
    """Steps, exits and rows."""
    return table.maps.shape[0], table.maps.shape[1], table.maps.shape[2]


def rms(x: Tensor) -> Tensor:
    """Root mean square over all elements."""
    return x.square().mean().sqrt()


def first_exit(table: Table, leaves: Callable[[int, int, int], bool]) -> Depths:
    """The first exit 1..K where `leaves(step, exit, row)` holds, else K + 1."""
    steps, exits, rows = size(table)
    depths = [[exits + 1] * rows for _ in range(steps)]
    for s in range(steps):
        for b in range(rows):
            for i in range(1, exits + 1):
                if leaves(s, i, b):
                    depths[s][b] = i
                    break
    return depths


def first_exit_of_batch(table: Table, leaves: Callable[[int, int], bool]) -> Depths:
    """As `first_exit`, with one decision for the whole batch."""
    rows = size(table)[2]
    alone = first_exit(table, lambda s, i, b: b == 0 and leaves(s, i))
    return [[step[0]] * rows for step in alone]


def known(table: Table, depth: Callable[[int, int], int]) -> Depths:
    """Depths `depth(step, row)` that are known beforehand; beyond K is K + 1."""
    steps, exits, rows = size(table)
    return [[min(depth(s, b), exits + 1) for b in range(rows)] for s in range(steps)]


# ------------------------------------------------------------------------------------- uncertainty


def uncertainty(
    table: Table, s: int, i: int, b: int, reduction: str = "mean", q: float = 0.9
) -> Tensor:
    u = table.maps[s, i - 1, b].flatten()
    if reduction == "quantile":
        ordered = u.sort().values
        at = q * (len(u) - 1)
        low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
        return low + (high - low) * (at - math.floor(at))
    return u.max() if reduction == "max" else u.mean()


def adadiff_paper(table: Table, threshold: float) -> Depths:
    """Each row by itself: the first block with mean uncertainty below the threshold."""
    return first_exit(table, lambda s, i, b: bool(uncertainty(table, s, i, b) < threshold))


def adadiff_official(table: Table, threshold: float) -> Depths:
    """The released code: blocks of the first half need two crossings, the others one.

    Its signal is certainty, averaged over batch and pixels; `threshold` is one minus its own.
    """
    steps, exits, rows = size(table)
    depths = []
    for s in range(steps):
        crossings, depth = 0, exits + 1
        for i in range(1, exits + 1):
            certainty = 1 - table.maps[s, i - 1].double().mean()
            if not certainty > 1 - threshold:
                continue
            crossings += 1
            if i > exits // 2 or crossings == 2:
                depth = i
                break
        depths.append([depth] * rows)
    return depths


def adadiff(
    table: Table,
    threshold: float,
    reduction: str = "mean",
    q: float = 0.9,
    patience: int = 1,
    patience_until: float = 1.0,
    minimum_depth: int = 1,
    per_timestep: tuple[tuple[float, float], ...] | None = None,
    batch_mean: bool = False,
    max_age: int | None = None,
) -> Depths:
    """Every option of the threshold, each as its own clause."""
    steps, exits, rows = size(table)
    age, depths = [0] * rows, []
    for s in range(steps):
        row_depths = []
        for b in range(rows):
            theta = threshold
            for edge, value in reversed(per_timestep or ()):
                if float(table.timestep[s, b]) < edge:
                    theta = value
            crossings, depth = 0, exits + 1
            for i in range(1, exits + 1):
                mates = range(rows) if batch_mean else [b]
                u = torch.stack([uncertainty(table, s, i, m, reduction, q) for m in mates]).mean()
                if not bool(u < theta):
                    continue
                crossings += 1  # not necessarily in a row: nothing sets it back
                patient = i <= patience_until * exits
                if patient and crossings < patience:
                    continue
                if i < minimum_depth or (max_age is not None and age[b] >= max_age):
                    continue
                depth = i
                break
            row_depths.append(depth)
        age = [0 if d > exits else a + 1 for d, a in zip(row_depths, age, strict=True)]
        depths.append(row_depths)
    return depths


def berxit(table: Table, threshold: float, per_exit: tuple[float, ...] | None = None) -> Depths:
    """The exit's own threshold, times the common one."""

    def leaves(s: int, i: int, b: int) -> bool:
        bound = threshold if per_exit is None else threshold * per_exit[i - 1]
        return bool(uncertainty(table, s, i, b) < bound)

    return first_exit(table, leaves)


def corrected(
    table: Table,
    edges: tuple[float, ...],
    per_bin: tuple[int, ...],
    means: tuple[tuple[float, ...], ...],
    deviations: tuple[tuple[float, ...], ...],
    limit: float,
) -> Depths:
    """S(t) - 1 for the unusually sure, S(t) for the usual, S(t) + 1 for the unusually unsure."""
    exits = size(table)[1]

    def leaves(s: int, i: int, b: int) -> bool:
        at = sum(float(table.timestep[s, b]) >= edge for edge in edges)
        planned = min(per_bin[at], exits + 1)
        z = (float(uncertainty(table, s, i, b)) - means[at][i - 1]) / deviations[at][i - 1]
        if i == planned - 1:
            return z < -limit
        if i == planned:
            return z <= limit
        return i == planned + 1

    return first_exit(table, leaves)


# ------------------------------------------------------------------------------------------ classes


def probabilities(table: Table, s: int, i: int, b: int) -> list[float]:
    logits = table.prediction[s, i - 1, b].tolist()
    weights = [math.exp(z - max(logits)) for z in logits]
    return [w / sum(weights) for w in weights]


def branchynet(table: Table, threshold: float) -> Depths:
    """Entropy of the classes below a share of the largest possible."""

    def leaves(s: int, i: int, b: int) -> bool:
        p = probabilities(table, s, i, b)
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        return entropy / math.log(len(p)) < threshold

    return first_exit(table, leaves)


def confidence(table: Table, threshold: float) -> Depths:
    """The likeliest class is likelier than the threshold."""
    return first_exit(table, lambda s, i, b: max(probabilities(table, s, i, b)) > threshold)


# ------------------------------------------------------------------------------- one exit to the next


def calm(
    table: Table,
    measure: str,
    threshold: float,
    decay: float | None = None,
    whole_batch: bool = False,
) -> Depths:
    """Confidence at least the threshold of the step; published, the least sure row decides for all."""
    steps, exits, rows = size(table)

    def sure(s: int, i: int, b: int) -> float:
        if measure == "meta":
            return float(1 - uncertainty(table, s, i, b))
        if measure == "margin":
            second, first = sorted(probabilities(table, s, i, b))[-2:]
            return first - second
        if i == 1:
            return -math.inf
        if measure == "cosine":
            now, before = (table.hidden[s, k, b].double().flatten() for k in (i - 1, i - 2))
            return float(now @ before / (now.norm() * before.norm()))
        y, before = table.prediction[s, i - 1, b], table.prediction[s, i - 2, b]
        return float(1 / (1 + rms(y - before) / rms(y)))

    def bound(s: int) -> float:
        if decay is None:
            return threshold
        return min(1.0, max(0.0, threshold * (0.9 + 0.1 * math.exp(-decay * s / steps))))

    if whole_batch:
        return first_exit_of_batch(
            table, lambda s, i: min(sure(s, i, b) for b in range(rows)) >= bound(s)
        )
    return first_exit(table, lambda s, i, b: sure(s, i, b) >= bound(s))


def agree(table: Table, s: int, i: int, b: int, tolerance: float | None) -> bool:
    """Whether exits i - 1 and i name the same class, or are near each other."""
    now, before = table.prediction[s, i - 1, b], table.prediction[s, i - 2, b]
    if tolerance is None:
        a, c = now.tolist(), before.tolist()
        return bool(a.index(max(a)) == c.index(max(c)))
    return bool(rms(now - before) < tolerance)


def pabee(
    table: Table, patience: int, tolerance: float | None = None, whole_batch: bool = False
) -> Depths:
    """A counter of agreements in a row; a disagreement sets it back to 0."""
    steps, exits, rows = size(table)

    depths = []
    for s in range(steps):
        row_depths = []
        for b in range(rows):
            mates, counter, depth = range(rows) if whole_batch else [b], 0, exits + 1
            for i in range(2, exits + 1):
                counter = counter + 1 if all(agree(table, s, i, m, tolerance) for m in mates) else 0
                if counter == patience:
                    depth = i
                    break
            row_depths.append(depth)
        depths.append(row_depths)
    return depths
