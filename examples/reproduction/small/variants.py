"""Ablations of the article's recipe: one thing changed at a time."""

from __future__ import annotations

from exitkit.benchmark import Exits, Method
from exitkit.config import LossConfig, OutputConfig, UncertaintyConfig
from exitkit.policies import UncertaintyThreshold

THRESHOLD = UncertaintyThreshold(0.08)


def _variant(name: str, label: str, **options: object) -> Method:
    return Method(label, Exits(f"ablation_{name}", "paper", "data", dict(options)), THRESHOLD, "")


def _loss(**changes: object) -> LossConfig:
    return LossConfig(train_backbone=True, **changes)


ABLATIONS: tuple[Method, ...] = (
    Method("the whole recipe", Exits("paper", "paper"), THRESHOLD, "arXiv 2309.17074"),
    _variant("no_ual", "without layer-wise loss", loss=_loss(layer_weight=0.0)),
    _variant("uniform", "uniform weights", loss=_loss(weighting="uniform")),
    _variant(
        "shared",
        "shared uncertainty head",
        uncertainty=UncertaintyConfig(shared=True, final=True),
    ),
    _variant("attached", "weight not detached", loss=_loss(detach_weight=False)),
    _variant("frozen", "frozen backbone", loss=LossConfig(train_backbone=False)),
    _variant("own_tail", "the backbone's own tail", output=OutputConfig(kind="shared")),
)
"""What the article ablates, and the controls that it lacks."""
