"""What conditional samples are conditioned on: a function of the sample's number alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import Experiment
from .latents import Encoded

Given = dict[str, Tensor]


@dataclass(frozen=True)
class Conditions:
    """Arguments of the conditional and of the unconditional call, by seed.

    Attributes:
        positive: Seeds (B,) to the arguments of the conditional call.
        negative: The same for the unconditional call.
        scale: Scale of the guidance.
    """

    positive: Callable[[Tensor], Given]
    negative: Callable[[Tensor], Given]
    scale: float

    def options(self, first: int = 0) -> dict[str, Any]:
        """Options of `exitkit.Sampler`; `first` is added to every seed."""
        return {
            "conditions": lambda seeds: self.positive(seeds + first),
            "negative_conditions": lambda seeds: self.negative(seeds + first),
            "guidance_scale": self.scale,
        }


def conditions(experiment: Experiment) -> Conditions | None:
    """The conditions of an experiment's samples; None if the backbone takes none.

    Classes take turns. Captions are those of the prompt images in order; further rounds take the
    images' further captions.
    """
    if experiment.guidance is None:
        return None
    scale = experiment.guidance.scale
    if experiment.backbone.shape.num_classes > 0:
        null = experiment.backbone.shape.num_classes - 1
        return Conditions(
            lambda numbers: {"y": numbers % null},
            lambda numbers: {"y": torch.full_like(numbers, null)},
            scale,
        )
    assert experiment.latents is not None
    prompts = Encoded(experiment.latents.prompts or experiment.latents.root)
    empty = prompts.empty()

    def captions(numbers: Tensor) -> Given:
        pairs = [divmod(number, len(prompts)) for number in numbers.tolist()]
        return {"context": torch.stack([prompts.text(image, turn) for turn, image in pairs])}

    return Conditions(
        captions, lambda numbers: {"context": empty.expand(len(numbers), *empty.shape)}, scale
    )
