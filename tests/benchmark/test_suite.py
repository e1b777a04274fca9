"""Suites: what they need, and how they are found by their address."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from exitkit.benchmark import Suite, load_suite
from exitkit.errors import ConfigError
from tests import tiny_suites


def test_a_suite_has_a_sampler_or_two_sets_of_batches() -> None:
    suite, classes = tiny_suites.suite(), tiny_suites.classes()
    assert (suite.use, classes.use) == ("generation", "classification")
    assert suite.calibrated_on() is suite.compared_on() is suite.sampler
    assert not (classes.calibrated_on()[0][0] == classes.compared_on()[0][0]).all()
    longer = suite.with_steps(9)
    assert longer.sampler is not None and longer.sampler.steps == 9
    assert classes.with_steps(9) is classes
    for changes in ({"sampler": None}, {"tuning": list}, {"held_out": list, "sampler": None}):
        with pytest.raises(ConfigError, match=r"Suite 'tiny': give sampler=.* or tuning= and"):
            replace(suite, **changes)  # type: ignore[arg-type]


def test_suites_are_found_by_their_address() -> None:
    assert load_suite("tests.tiny_suites:ready") is tiny_suites.ready
    made = load_suite("tests.tiny_suites:suite")
    assert isinstance(made, Suite) and made.name == "tiny"


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("tests.tiny_suites", "no address of a suite. Expected module:name"),
        ("tests.tiny_suites:", "no address of a suite"),
        (":suite", "no address of a suite"),
        ("", "no address of a suite"),
        ("nowhere.at.all:suite", "ModuleNotFoundError: No module named 'nowhere'"),
        ("tests.tiny_suites:suitte", "AttributeError: .*'suitte'"),
        (".tiny_suites:suite", "no address of a suite"),
        ("tests.tiny_suites:no_suite", "gives function, expected an exitkit.benchmark.Suite"),
        ("tests.tiny_suites:SHAPE", "gives tuple, expected an exitkit.benchmark.Suite"),
    ],
)
def test_addresses_without_a_suite_say_what_is_there(address: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_suite(address)


def test_errors_inside_a_suite_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_suite.py").write_text("def suite():\n    raise RuntimeError('no data')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="no data"):
        load_suite("broken_suite:suite")
    sys.modules.pop("broken_suite", None)
