"""Samplers from loose arguments, with one condition a sample in the order of the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.sampling.conditions import Conditions
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.seeds import seed_list


def sampler_from(
    scheduler: Any, shape: Sequence[int], options: Mapping[str, Any]
) -> tuple[Sampler, tuple[int, ...]]:
    """A sampler and its seeds from `steps`, `seed`, `count`, `seeds`, `inputs` and the like."""
    given = dict(options)
    seed, count = given.pop("seed", 0), given.pop("count", None)
    listed = given.pop("seeds", None)
    seeds = seed_list(1 if count is None else count, seed) if listed is None else seed_list(listed)
    for name in ("inputs", "negative_inputs"):
        conditions = given.pop(name, None)
        given[name.replace("inputs", "conditions")] = by_position(conditions, seeds)
    return Sampler(scheduler, tuple(shape), **given), seeds


def by_position(conditions: Conditions | None, seeds: Sequence[int]) -> Conditions | None:
    """Conditions by seed from conditions by place in a list of seeds.

    Arguments:
        conditions: Tensors of one entry a sample, or a function of places, with shape (B,).
        seeds: The seeds in order.

    Returns:
        A function of seeds.
    """
    if conditions is None or (isinstance(conditions, Mapping) and not conditions):
        return conditions
    places = {seed: place for place, seed in enumerate(seeds)}
    made: Callable[[Tensor], Mapping[str, Any]] | None = (
        conditions if callable(conditions) else None
    )

    def pick(value: Any, rows: Tensor) -> Any:
        if isinstance(value, Mapping):
            return {key: pick(entry, rows) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(pick(entry, rows) for entry in value)
        alone = not isinstance(value, Tensor) or value.ndim == 0
        if not alone and len(value) != len(places):
            raise ShapeError(
                f"A condition has {len(value)} rows, but there are {len(places)} samples. Give one row "
                "for each seed."
            )
        return value if alone else value[rows.to(value.device)]

    def select(wanted: Tensor) -> Mapping[str, Any]:
        rows = torch.tensor([places[int(seed)] for seed in wanted])
        found: Mapping[str, Any] = made(rows) if made is not None else pick(conditions, rows)
        return found

    return select
