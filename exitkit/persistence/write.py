"""Exits as they are written to a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from exitkit._compat import versions_for
from exitkit.config import ExitConfig
from exitkit.heads.build import Heads
from exitkit.persistence import card
from exitkit.persistence.fingerprint import lora_adapters, structure, values
from exitkit.persistence.settings import CALIBRATION, CONFIG, Components, Fingerprint, Settings
from exitkit.persistence.weights import BACKBONE, HEADS, write_tensors
from exitkit.policies import Calibration, Policy

FILES = (CONFIG, HEADS, BACKBONE, CALIBRATION, card.CARD)
"""All that is ever written."""


@dataclass(frozen=True)
class Exits:
    """What is kept of a wrapped model.

    Attributes:
        heads: The heads.
        backbone: The backbone, for its fingerprint, and its weights if it was trained.
        config: The config.
        policy: The policy.
        calibration: The calibration that found the policy, or None.
        paths: Path of each exit.
        fitted: Description of the sampler that the exits were fitted on, or None.
        predicts: What the prediction was taken for, or None.
        example: Description of the call that the backbone was wrapped with, or None.
    """

    heads: Heads
    backbone: nn.Module
    config: ExitConfig
    policy: Policy
    calibration: Calibration | None
    paths: Sequence[str]
    fitted: dict[str, Any] | None
    predicts: str | None
    example: dict[str, Any] | None

    def write(self, folder: Path) -> None:
        """Writes all of it to a folder that is there, weights first."""
        sums = {HEADS: write_tensors(folder / HEADS, self.heads)}
        if self.config.loss.train_backbone:
            sums[BACKBONE] = write_tensors(folder / BACKBONE, self.backbone)
        settings = Settings(
            config=self.config.model_dump(mode="json"),
            policy=self.policy.to_dict(),
            exits=tuple(self.paths),
            backbone=fingerprint(self.backbone),
            example=self.example,
            fitted=self.fitted,
            predicts=self.predicts,
            sizes=self.heads.sizes.ends,
            versions=versions_for(self.backbone),
            sums=sums,
        )
        if self.calibration is not None:
            _write_json(folder / CALIBRATION, self.calibration.to_dict())
        _write_json(folder / CONFIG, settings.model_dump(mode="json", by_alias=True))
        (folder / card.CARD).write_text(
            card.text(settings, self.policy, self.calibration, card.base_of(self.backbone))
        )


def fingerprint(backbone: nn.Module) -> Fingerprint:
    """What is kept of a backbone to know it again."""
    dtype = next((t.dtype for t in backbone.parameters() if t.is_floating_point()), None)
    return Fingerprint(
        class_name=type(backbone).__name__,
        structure=structure(backbone),
        values=values(backbone),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        adapters=tuple(lora_adapters(backbone)),
        base=card.base_of(backbone).name,
    )


def write_components(folder: Path, components: dict[str, Exits]) -> None:
    """Writes the exits of several denoisers, each to a folder of its name.

    Arguments:
        folder: A folder that is there.
        components: The exits by component.
    """
    for name, exits in components.items():
        (folder / name).mkdir()
        exits.write(folder / name)
    _write_json(folder / CONFIG, Components(components=tuple(components)).model_dump(mode="json"))
    (folder / card.CARD).write_text(
        card.text_of_several(
            {n: (e.policy, e.calibration, card.base_of(e.backbone)) for n, e in components.items()}
        )
    )


def _write_json(file: Path, told: dict[str, Any]) -> None:
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
