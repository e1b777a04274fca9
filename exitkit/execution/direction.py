"""Which way each row's time goes, and which rows turn round."""

from __future__ import annotations

from collections.abc import Sequence


def followed(
    known: Sequence[float], signs: Sequence[float]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Holds the moves of rows against the direction that they had.

    A row that stays where it is while others move is no further step of its own: it counts as turned,
    and keeps its direction.

    Arguments:
        known: Direction of each row so far, -1 or 1, and 0 where it is not known; of another number of
            rows if the calls of a step differ, and empty at the beginning.
        signs: Signs of the rows' moves; one for all where rows cannot be told from each other.

    Returns:
        The directions now, 0 of rows that turned; and the numbers of the rows that turned, all of them
        where the calls differ and their directions do too.
    """
    if len(known) != len(signs):
        told = {direction for direction in known if direction}
        if len(told) > 1:
            return (0.0,) * len(signs), tuple(range(len(signs)))
        known = [told.pop() if told else 0.0] * len(signs)
    pairs = list(zip(known, signs, strict=True))
    # NaN differs from all that it is held against.
    turned = tuple(r for r, (was, now) in enumerate(pairs) if not now or (was and now != was))
    gone = {r for r in turned if pairs[r][1]}
    now = tuple(0.0 if r in gone else now or was for r, (was, now) in enumerate(pairs))
    return now, turned
