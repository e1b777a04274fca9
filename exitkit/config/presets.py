"""Settings by name: the article's method, its released code, its rivals, and this project's own."""

from __future__ import annotations

from typing import Any

from exitkit.config.fields import (
    ExitConfig,
    LossConfig,
    OutputConfig,
    UncertaintyConfig,
    parse_config,
)
from exitkit.errors import ConfigError, suggest


def _threshold(theta: float, **more: Any) -> dict[str, Any]:
    return {"name": "uncertainty_threshold", "threshold": theta, **more}


# Exits of the rivals are trained together with the backbone, on the task's own target.
def _rival(preset: str, policy: dict[str, Any], loss: LossConfig, **more: Any) -> ExitConfig:
    return ExitConfig(preset=preset, policy=policy, loss=loss, **more)


PRESETS: dict[str, ExitConfig] = {
    "paper": ExitConfig(
        preset="paper",
        uncertainty=UncertaintyConfig(final=True),
        output=OutputConfig(kind="output"),
        loss=LossConfig(train_backbone=True),
        policy=_threshold(0.08),
    ),
    "official": ExitConfig(
        preset="official",
        uncertainty=UncertaintyConfig(timestep=False, final=True),
        output=OutputConfig(kind="shared"),
        loss=LossConfig(
            weighting="certainty_share",
            detach_weight=False,
            detach_hidden=True,
            include_last=True,
            train_backbone=True,
        ),
        # Certainty above 0.92, twice while in the first half of the network, one decision a batch.
        policy=_threshold(0.08, patience=2, patience_until=0.5, minimum_depth=2, batch_mean=True),
    ),
    "relative": ExitConfig(
        preset="relative",
        loss=LossConfig(target="model", uncertainty_target="relative", weighting="uniform"),
        policy=_threshold(0.05),
    ),
    "carried": ExitConfig(
        preset="carried",
        exits="first",
        output=OutputConfig(kind="carried"),
        loss=LossConfig(target="model", uncertainty_target="relative", weighting="uniform"),
        policy=_threshold(0.05),
    ),
    "completion": ExitConfig(
        preset="completion",
        exits=(),
        output=OutputConfig(kind="completion", knots=100),
        loss=LossConfig(target="model", uncertainty_target="relative", weighting="uniform"),
        policy={"name": "interval", "interval": 2, "depth": 0},
    ),
    "berxit": _rival(
        "berxit",
        {"name": "learning_to_exit", "threshold": 0.1},
        LossConfig(weighting="uniform", alternating=True, train_backbone=True),
        # sigmoid(a . pool(h) + b), one for all exits as far as their shapes allow.
        uncertainty=UncertaintyConfig(kind="scalar", shared="by_shape", timestep=False),
        output=OutputConfig(kind="output"),
    ),
    "calm": _rival(
        "calm",
        {"name": "calm", "measure": "meta", "threshold": 0.9},
        LossConfig(uncertainty_target="disagreement", weighting="depth", train_backbone=True),
        uncertainty=UncertaintyConfig(kind="scalar"),
        output=OutputConfig(kind="shared"),
    ),
    "pabee": _rival(
        "pabee",
        {"name": "patience", "patience": 3},
        LossConfig(weighting="depth", uncertainty_weight=0.0, train_backbone=True),
        uncertainty=UncertaintyConfig(kind="scalar"),
        output=OutputConfig(kind="output"),
    ),
    "branchynet": _rival(
        "branchynet",
        {"name": "entropy_threshold", "threshold": 0.1},
        LossConfig(weighting="uniform", uncertainty_weight=0.0, train_backbone=True),
        uncertainty=UncertaintyConfig(kind="scalar"),
        output=OutputConfig(kind="output"),
    ),
}


def resolve_config(config: str | ExitConfig, **overrides: Any) -> ExitConfig:
    """Turns a preset name or a config into a config, with fields replaced.

    Arguments:
        config: Name of a preset, or an `ExitConfig`.
        overrides: Fields of `ExitConfig` to replace.

    Returns:
        The validated config.

    Raises:
        ConfigError: If the preset does not exist or a field is out of range.
    """
    if isinstance(config, str):
        if config not in PRESETS:
            raise ConfigError(
                f"There is no preset {config!r} (presets: {', '.join(PRESETS)})."
                f"{suggest(config, PRESETS)} Pass one of them, or an ExitConfig."
            )
        config = PRESETS[config]
    if not isinstance(config, ExitConfig):
        raise ConfigError(
            f"Expected a preset name or an ExitConfig, got {type(config).__name__}. "
            f"Presets: {', '.join(PRESETS)}."
        )
    if not overrides:
        return config
    return parse_config({**config.model_dump(), **overrides})
