"""Naive readings of the policies that go by time, by earlier steps, or by the full model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from tests.policies.references import Depths, Table, first_exit, known, rms, size

# -------------------------------------------------------------------------------------------- fixed


def never(table: Table) -> Depths:
    """Everybody runs to the end."""
    return known(table, lambda s, b: size(table)[1] + 1)


def static(table: Table, depth: int) -> Depths:
    """The same exit for all."""
    return known(table, lambda s, b: depth)


def scripted(table: Table, per_row: Sequence[int]) -> Depths:
    """What is written for each place in the batch."""
    return known(table, lambda s, b: per_row[b])


def by_timestep(table: Table, edges: Sequence[float], per_bin: Sequence[int]) -> Depths:
    """The bin of the timestep; an edge belongs above it."""

    def depth(s: int, b: int) -> int:
        at = 0
        while at < len(edges) and float(table.timestep[s, b]) >= edges[at]:
            at += 1
        return per_bin[at]

    return known(table, depth)


def by_step(table: Table, per_step: Sequence[int]) -> Depths:
    """The entry of the step."""
    return known(table, lambda s, b: per_step[s])


def ase(
    table: Table, costs: Sequence[float], shares: Sequence[float], last_timestep: int = 1000
) -> Depths:
    """Equal bins of the timestep, each with the share of the network that it may run."""
    exits = size(table)[1]

    def depth(s: int, b: int) -> int:
        at = min(int(float(table.timestep[s, b]) * len(shares) / last_timestep), len(shares) - 1)
        if shares[at] >= 1:
            return exits + 1
        within = [i for i in range(1, exits + 1) if costs[i - 1] <= shares[at] + 1e-9]
        return max(within, default=1)

    return known(table, depth)


def deepcache(table: Table, interval: int, depth: int = 1) -> Depths:
    """A full step, then early ones until the interval is over."""
    exits, since, found = size(table)[1], 0, []
    for _ in range(size(table)[0]):
        found.append(exits + 1 if since == 0 else min(depth, exits + 1))
        since = (since + 1) % interval
    return by_step(table, found)


def commonest(depths: Depths) -> list[int]:
    """Mode of each step; the deeper of equals."""
    counts = [Counter(step) for step in depths]
    return [max(c, key=lambda d, c=c: (c[d], d)) for c in counts]  # type: ignore[misc]


# ------------------------------------------------------------------------------- one step to the next


def first_block(
    table: Table,
    threshold: float,
    accumulate: bool = False,
    polynomial: Sequence[float] = (1.0, 0.0),
    depth: int = 1,
) -> Depths:
    """First Block Cache and TeaCache, one row at a time with its own history.

    First Block Cache compares with the row's last full step; TeaCache sums p(change) from step to
    step since then, and starts again from 0 with every full step.
    """
    steps, exits, rows = size(table)
    depths = [[exits + 1] * rows for _ in range(steps)]
    if depth > exits:
        return depths
    for b in range(rows):
        added = []
        for s in range(steps):
            hidden, entry = table.hidden[s, depth - 1, b], table.entry[s, b]
            added.append(hidden - entry if hidden.shape == entry.shape else hidden)
        last_full, total = 0, 0.0
        for s in range(1, steps):
            against = added[s - 1] if accumulate else added[last_full]
            change = float((added[s] - against).abs().mean() / against.abs().mean())
            if accumulate:
                powers = range(len(polynomial) - 1, -1, -1)
                total += sum(c * change**n for c, n in zip(polynomial, powers, strict=True))
                change = total
            if change < threshold:
                depths[s][b] = depth
            else:
                last_full, total = s, 0.0
    return depths


# ------------------------------------------------------------------------------------ the full model


def gap(table: Table, s: int, i: int, b: int) -> float:
    """Distance of what exit i predicts to what the full model does; 0 at the end."""
    if i > size(table)[1]:
        return 0.0
    return float(rms(table.prediction[s, i - 1, b] - table.full[s, b]))


def weight(table: Table, s: int, b: int, weights: Sequence[tuple[float, float]] | None) -> float:
    """The weight of the first edge above the timestep; above all edges the last."""
    if weights is None:
        return 1.0
    above = [w for edge, w in weights if float(table.timestep[s, b]) < edge]
    return above[0] if above else weights[-1][1]


def oracle(
    table: Table,
    delta: float | None = None,
    price: float | None = None,
    costs: Sequence[float] | None = None,
    weights: Sequence[tuple[float, float]] | None = None,
) -> Depths:
    """The first exit that is near enough, or the one with the least error and cost together."""

    def felt(s: int, i: int, b: int) -> float:
        return gap(table, s, i, b) * weight(table, s, b, weights)

    if delta is not None:
        return first_exit(table, lambda s, i, b: felt(s, i, b) <= delta)
    assert price is not None and costs is not None
    prices = [price * c for c in (*costs, 1.0)]

    def best(s: int, b: int) -> int:
        totals = [felt(s, i, b) + prices[i - 1] for i in range(1, len(prices) + 1)]
        return totals.index(min(totals)) + 1

    return known(table, best)


def least_error(errors: Sequence[Sequence[float]], costs: Sequence[float], budget: float) -> float:
    """Smallest sum of errors over all choices of one column a row within a sum of costs."""
    return min(
        sum(row[d] for row, d in zip(errors, choice, strict=True))
        for choice in product(range(len(costs)), repeat=len(errors))
        if sum(costs[d] for d in choice) <= budget + 1e-9
    )
