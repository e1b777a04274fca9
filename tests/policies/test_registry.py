"""Policies by name: what registers, what is refused, and hints at what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from exitkit.errors import ConfigError
from exitkit.policies import ExitRule, Schedule, policy_from_dict, register_policy, registry


def test_own_policies_register_once(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", registry.registered_policies())

    @register_policy
    @dataclass(frozen=True)
    class Coin(ExitRule):
        sides: tuple[tuple[int, ...], ...] = ((1, 2),)
        name: ClassVar[str] = "coin"

        def decide(self, signals):
            return signals.rows % 2 == 0

    assert policy_from_dict({"name": "coin"}) == Coin()
    assert policy_from_dict(Coin(((3,), (4, 5))).to_dict()) == Coin(((3,), (4, 5)))
    with pytest.raises(ConfigError, match="The policy name 'coin' belongs to .*Coin already"):
        register_policy(Coin)

    class Nameless(ExitRule):
        def decide(self, signals):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Nameless has no name"):
        register_policy(Nameless)

    @dataclass
    class Mutable(Coin.__base__):
        name: ClassVar[str] = "mutable"

        def decide(self, signals):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Mutable is no frozen dataclass"):
        register_policy(Mutable)
    for kind in (Schedule, ExitRule):
        with pytest.raises(TypeError, match="abstract"):
            kind()


def test_misspelt_settings_get_a_hint():
    with pytest.raises(ConfigError, match=r"no policy 'fixed_exits'.*Did you mean 'fixed_exit'"):
        policy_from_dict({"name": "fixed_exits"})
    with pytest.raises(ConfigError, match="There is no policy None"):
        policy_from_dict({"threshold": 0.1})
    with pytest.raises(ConfigError, match=r"no field 'treshold'.*Did you mean 'threshold'"):
        policy_from_dict({"name": "uncertainty_threshold", "treshold": 0.1})
    with pytest.raises(ConfigError, match="'uncertainty_threshold' needs a value for threshold"):
        policy_from_dict({"name": "uncertainty_threshold"})
