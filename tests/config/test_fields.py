"""Settings: frozen, and refusals that list what is wrong."""

from __future__ import annotations

import pytest

from exitkit.config import PRESETS, ExitConfig, resolve_config
from exitkit.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"exits": ()}, "leaves no exit"),
        ({"loss": {"train_backbone": True}, "output": {"kind": "carried"}}, "train_backbone=False"),
        ({"output": {"kind": "caried"}}, "output.kind"),
        ({"output": {"order": 3}}, "output.order"),
        ({"uncertainty": {"embedding_dim": 3}}, "uncertainty.embedding_dim"),
        ({"guidence": "tied"}, "guidence"),
    ],
)
def test_bad_settings_name_the_field(change, match):
    with pytest.raises(ConfigError, match=match):
        resolve_config(ExitConfig(), **change)


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        PRESETS["relative"].output.kind = "shared"
