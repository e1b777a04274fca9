"""What identifies a sampler, in values that a file keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from exitkit.sampling.conditions import Conditions


def settings_of(scheduler: Any) -> dict[str, Any]:
    """Class and settings of a scheduler, as values that survive JSON."""
    config = dict(getattr(scheduler, "config", {}))
    told = {k: v for k, v in config.items() if not k.startswith("_")}
    return plain_values({"class": type(scheduler).__name__, **told})


def plain_values(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description as values that survive JSON: what JSON has no word for as text, infinities too."""
    text = json.dumps(described, default=str)
    # Python writes -Infinity, which others read as nothing: DPM-Solver's `lambda_min_clipped`.
    plain: dict[str, Any] = json.loads(text, parse_constant=str)
    return plain


def by_name(conditions: Conditions | None) -> Any:
    """Conditions by name alone."""
    if conditions is None:
        return None
    if callable(conditions):
        return getattr(conditions, "__qualname__", type(conditions).__name__)
    return sorted(conditions)


def in_words(value: Any) -> Any:
    """A keyword as a value that survives JSON: tensors by their shape."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    plain = isinstance(value, bool | int | float | str | None)
    return value if plain else type(value).__name__
