"""What a family of backbones may declare beyond what probing finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from exitkit.errors import ConfigError


@dataclass(frozen=True)
class Adapter:
    """Declares what dry runs cannot know about an architecture.

    Every field but the first two is optional: what is None is probed.

    Attributes:
        name: Name that error messages and listings use.
        matches: Dotted path of the backbone's class, or a predicate on the backbone.
        noisy: Parameter that carries the noisy input or the image, or its path inside one: `x`,
            `batch.x` where `forward(batch)` takes a mapping.
        timestep: Parameter that carries the timestep, or its path inside one: `batch.when`.
        timestep_range: Its values at no noise and at full noise, for backbones whose timestep is
            neither in 0..1 nor in 0..1000, or runs the other way: `(-1.2, 1.6)`, `(1.0, 0.0)`.
        batch_axis: Batch axis of the noisy input.
        prediction: Path of the prediction in the output (`.sample`, `[1]`), for backbones that return
            several tensors of its form.
        blocks: Dotted paths or wildcards of the modules that are stages, in place of the search.
        batched: False for a backbone that takes one packed sequence, without a batch axis: exits
            are per call, the whole of which is one row. It may be said of a backbone that has a
            batch axis; then all rows of a call leave together, at one depth.

    Raises:
        ConfigError: If `batched=False` comes with a `batch_axis`, or the range is none.
    """

    name: str
    matches: str | Callable[[nn.Module], bool]
    noisy: str | None = None
    timestep: str | None = None
    timestep_range: tuple[float, float] | None = None
    batch_axis: int | None = None
    blocks: tuple[str, ...] | None = None
    batched: bool = True
    prediction: str | None = None

    def __post_init__(self) -> None:
        ends = self.timestep_range
        if ends is not None and not (all(map(math.isfinite, ends)) and ends[0] != ends[1]):
            raise ConfigError(
                f"Adapter {self.name!r}: timestep_range={ends} is no range. Give two different numbers, "
                "the timestep at no noise and at full noise."
            )
        if not self.batched and self.batch_axis is not None:
            raise ConfigError(
                f"Adapter {self.name!r} declares batched=False and batch_axis={self.batch_axis}. "
                "Without a batch axis there is none to name; leave one of the two out."
            )
