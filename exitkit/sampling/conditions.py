"""Conditions: what a sample is made from beside its noise, by its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError, ShapeError

Conditions = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]]
"""Keyword arguments of the backbone beside noisy input and timestep.

A mapping holds *pools*: tensors of one common length n, also inside lists and mappings, of which
seed s gets entry s mod n; numbers, tensors without axes and None go to every sample. A function gets
the seeds of a batch, int64 on the CPU with shape (B,), and what it returns is passed on as it is; it
must depend on the seeds alone.
"""


def check_conditions(conditions: Conditions | None, name: str = "conditions") -> None:
    """Refuses what is neither a mapping of pools nor a function.

    Arguments:
        conditions: The conditions.
        name: What they are called where they were given.

    Raises:
        ConfigError: If they are neither.
        ShapeError: If two pools differ in length; the message names them.
    """
    if conditions is None or callable(conditions):
        return
    if not isinstance(conditions, Mapping):
        raise ConfigError(
            f"{name} must be a mapping of tensors by argument name, or a function of seeds; got "
            f"{type(conditions).__name__}."
        )
    _length(conditions, name)


def conditions_of(
    conditions: Conditions | None,
    seeds: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "conditions",
) -> dict[str, Any]:
    """The conditions of a batch, as keyword arguments of the backbone.

    Arguments:
        conditions: Pools, or a function of seeds.
        seeds: Seeds of the batch, int64 on the CPU, with shape (B,).
        device: Where tensors are wanted.
        dtype: What floating-point tensors become.
        name: What they are called where they were given.

    Returns:
        Arguments by name.

    Raises:
        ConfigError: If a function returns no mapping.
        ShapeError: If two pools differ in length.
    """
    if conditions is None:
        return {}
    if callable(conditions):
        given = conditions(seeds)
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"{name} must return a mapping of keyword arguments, but returned "
                f"{type(given).__name__}."
            )
        return {key: _placed(value, None, device, dtype) for key, value in given.items()}
    length = _length(conditions, name)
    rows = seeds % length if length else None
    return {key: _placed(value, rows, device, dtype) for key, value in conditions.items()}


def _length(conditions: Mapping[str, Any], name: str) -> int:
    """Common length of all pools, 0 where there is none."""
    pools = dict(_pools(conditions, name))
    lengths = set(pools.values())
    if len(lengths) > 1:
        listed = ", ".join(f"{path} {length}" for path, length in pools.items())
        raise ShapeError(
            f"{name}: pools of different lengths ({listed}). Seed s gets entry s mod n of each, so all "
            "need the same n. Pass a function of seeds for anything else."
        )
    if 0 in lengths:
        raise ShapeError(f"{name}: {', '.join(pools)} hold no entry.")
    return next(iter(lengths), 0)


def _pools(value: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _pools(inner, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _pools(inner, f"{path}[{index}]")
    elif isinstance(value, Tensor) and value.ndim:
        yield path, len(value)


def _placed(value: Any, rows: Tensor | None, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {key: _placed(inner, rows, device, dtype) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_placed(inner, rows, device, dtype) for inner in value])
    if not isinstance(value, Tensor):
        return value
    if rows is not None and value.ndim:
        value = value[rows.to(value.device)]
    return value.to(device, dtype if value.is_floating_point() else value.dtype)
