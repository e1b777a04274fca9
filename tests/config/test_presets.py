"""Presets: themselves, with fields replaced, and misspelt."""

from __future__ import annotations

import pytest

from exitkit.config import PRESETS, ExitConfig, OutputConfig, parse_config, resolve_config
from exitkit.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_themselves_and_survive_json(name):
    config = resolve_config(name)
    assert config is PRESETS[name] and config.preset == name
    assert (
        parse_config(ExitConfig.model_validate_json(config.model_dump_json()).model_dump())
        == config
    )


def test_overrides_replace_fields_and_leave_the_preset():
    changed = resolve_config("relative", exits=(2,), guidance="tied")
    assert changed.exits == (2,) and changed.guidance == "tied"
    assert changed.loss == PRESETS["relative"].loss and PRESETS["relative"].exits is None
    given = ExitConfig(output=OutputConfig(kind="output"))
    assert resolve_config(given) is given


def test_unknown_presets_are_refused_with_a_guess():
    with pytest.raises(ConfigError, match=r"no preset 'relativ'.*Did you mean 'relative'"):
        resolve_config("relativ")
    with pytest.raises(ConfigError, match="Expected a preset name or an ExitConfig, got int"):
        resolve_config(3)
