"""What README and docs name exists, and takes the arguments that they give it."""

from __future__ import annotations

import re

import pytest

from tests.pages.reading import (
    NAME,
    PAGES,
    ROOT,
    blocks,
    calls,
    exists,
    literals,
    misspelt,
    programs,
    resolve,
)

NOT_PYTHON = {"exitkit.json", "exitkit.local"}
"""Names with a dot that are no objects."""


def names(text: str) -> set[str]:
    return {n for code in (*blocks(text), *literals(text)) for n in NAME.findall(code)} - NOT_PYTHON


def faults(text: str) -> list[str]:
    """What a page says and the package does not know."""
    found, unknown = [], set()
    for name in sorted(names(text)):
        try:
            resolve(name)
        except AttributeError as error:
            unknown.add(name)
            found.append(str(error))
    for code in (*blocks(text), *literals(text)):
        wrong = (misspelt(name, call) for name, call in calls(code) if name not in unknown)
        found += [fault for fault in wrong if fault]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_name_and_argument_exists(page: str) -> None:
    assert faults((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_program_exists(page: str) -> None:
    found = programs((ROOT / page).read_text(encoding="utf-8"))
    assert [program for program in sorted(found) if not exists(program)] == []


def test_a_program_that_was_moved_is_found() -> None:
    found = programs("`python -m benchmarks.reproduce`, `python -m tests.house`, `python a/b.py`")
    assert [program for program in sorted(found) if not exists(program)] == [
        "a/b.py",
        "benchmarks/reproduce",
    ]


def test_the_pages_name_much() -> None:
    found = set().union(*(names((ROOT / page).read_text(encoding="utf-8")) for page in PAGES))
    assert {"ek.wrap", "ek.fit", "ek.calibrate", "ek.compare", "ek.Sampler"} <= found


def test_old_spellings_are_found() -> None:
    page = (
        "``ek.SelfTrajectories``, ``exitkit.studies.run(x)``, `ek.calibrate(model, on, cost=0.5)`"
    )
    first, second, third = faults(page)
    assert "SelfTrajectories" in first and "exitkit.studies" in second
    assert third == "ek.calibrate takes no cost"


def test_every_test_that_a_page_names_is_there() -> None:
    named = {
        (page, path)
        for page in PAGES
        for path in re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / page).read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert not [pair for pair in named if not (ROOT / pair[1]).is_file()]
