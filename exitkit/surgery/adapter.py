"""What a family of backbones may declare beyond what probing finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """Declares what dry runs cannot know about an architecture.

    Every field but the first two is optional: what is None is probed.

    Attributes:
        name: Name that error messages and listings use.
        matches: Dotted path of the backbone's class, or a predicate on the backbone.
        noisy: Parameter that carries the noisy input or the image.
        timestep: Parameter that carries the timestep.
        batch_axis: Batch axis of the noisy input.
        blocks: Dotted paths or wildcards of the modules that are stages, in place of the search.
    """

    name: str
    matches: str | Callable[[nn.Module], bool]
    noisy: str | None = None
    timestep: str | None = None
    batch_axis: int | None = None
    blocks: tuple[str, ...] | None = None
