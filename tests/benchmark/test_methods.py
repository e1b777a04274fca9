"""The catalogue of methods, by name and wildcard."""

from __future__ import annotations

import pytest

from exitkit.benchmark import METHODS, Method, methods_for
from exitkit.benchmark.methods import RELATIVE
from exitkit.errors import ConfigError
from tests import tiny_suites


def test_methods_by_name_and_wildcard() -> None:
    assert methods_for() == [m for m in METHODS if m.use == "generation"]
    assert [c.name for c in methods_for(["pabee*", "ase"])] == ["pabee", "pabee batch", "ase"]
    assert methods_for(["static", "static"]) == methods_for(["static"])
    with pytest.raises(
        ConfigError, match=r"no method 'oracles' for generation .*Did you mean 'oracle'"
    ):
        methods_for(["oracles"])
    names = [(c.use, c.name) for c in METHODS]
    assert len(set(names)) == len(names) and all(c.source for c in METHODS)
    assert [c.name for c in methods_for(["calm*"], "classification")][:2] == [
        "calm margin",
        "calm margin batch",
    ]
    with pytest.raises(ConfigError, match="no method 'ase' for classification"):
        methods_for(["ase"], "classification")
    # One name, one kind of exits: the folder goes by it.
    for method in METHODS:
        same = [c.exits for c in METHODS if c.exits.name == method.exits.name]
        assert all(e.resolved() == same[0].resolved() and e.fit == same[0].fit for e in same)


def test_methods_ask_for_policies_of_their_model() -> None:
    oracle = next(c for c in METHODS if c.name == "oracle priced")
    model = tiny_suites.wrapped("relative")
    asked = oracle.asked(model)
    assert asked.costs == tuple(min(1.0, e.cost) for e in model.exits)  # type: ignore[union-attr]
    plain = Method("x", RELATIVE, "schedule", "")
    assert plain.asked(model) == "schedule"
