"""Suites: every method of the catalogue on a tiny backbone, fitted once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from exitkit.benchmark import Recipe, fitted, fitting, methods_for, run_suite
from exitkit.benchmark.methods import BERXIT
from exitkit.calibration.paths import router
from exitkit.errors import ConfigError
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel
from tests import tiny_suites

RECIPE = Recipe(steps=2, batch_size=4, calibration=4)
SIZES: dict[str, Any] = {"seeds": 2, "recipe": RECIPE, "static": False, "progress": False}
METHODS = methods_for()
HIGH = 0.75
COUPLED = ("adadiff official", "calm batch", "pabee batch")


class Ran(SimpleNamespace):
    """A comparison, what was fitted for it, and where."""

    result: Comparison
    fits: list[str]
    folder: Path


@pytest.fixture(scope="module")
def counted() -> Iterator[list[str]]:
    """Presets of all fits so far."""
    fits: list[str] = []
    real = fitting.fit

    def counting(model: ExitModel, *args: Any, **options: Any) -> Any:
        fits.append(model.exit_config.preset)
        return real(model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit", counting)
        patch.setattr(router, "LEARNING_STEPS", 30)  # how well it learns is no matter here
        yield fits


@pytest.fixture(scope="module")
def everything(counted: list[str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The whole catalogue at a budget that most can meet."""
    folder = tmp_path_factory.mktemp("everything")
    torch.manual_seed(0)
    result = run_suite(tiny_suites.suite(), METHODS, budgets=[HIGH], folder=folder, **SIZES)
    return Ran(result=result, fits=list(counted), folder=folder)


def test_every_method_has_a_row_without_blanks(everything: Ran) -> None:
    result = everything.result
    rows = {row.name: row for row in result.rows}
    for method in METHODS:
        row = rows[f"{method.name} at {HIGH:g}"]
        assert row.kind == "policy" and row.steps == 4 and row.count == 2
        numbers = [row.cost, row.layers, row.distance.mean, row.distance.low, row.distance.high]
        assert row.clock is not None and row.clock.median > 0
        assert all(n is not None and math.isfinite(n) and n >= 0 for n in numbers), row
    # A pilot on other seeds says how many steps a cost buys; all of them are no rival.
    met = [rows[f"{c.name} at {HIGH:g}"].against_steps is not None for c in METHODS]
    assert sum(met) > len(METHODS) / 2
    assert rows["half the depth"].kind == "network"
    assert rows["half the depth"].against_steps is not None
    lines = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1 and all(all(line) for line in cells)
    assert not any("nan" in cell or "inf" in cell for line in cells for cell in line)


def test_rows_are_within_the_budget_or_noted(everything: Ran) -> None:
    notes = everything.result.notes
    over: list[str] = []
    for method in METHODS:
        name = f"{method.name} at {HIGH:g}"
        mine = [note for note in notes if note.startswith(f"{name}:")]
        # The seeds of the table are others than those of the calibration, which costs that hang on
        # one decision a batch do not forgive.
        if not mine and method.name not in COUPLED:
            over += [name] if everything.result[name].cost > HIGH + 0.2 else []
        else:
            said = ("not reachable, shown at", "nothing between a cost of")
            assert all(any(words in note for words in said) for note in mine)
    # Its head of two optimiser steps sees no difference between rows: all of them tip at once.
    assert set(over) <= {f"calm meta at {HIGH:g}"}
    beyond = [note for note in notes if "not reachable" in note]
    met = [c for c in METHODS if not any(n.startswith(c.name + " at") for n in beyond)]
    assert len(met) > len(METHODS) / 2, "else the budget says nothing"


def test_each_kind_of_exits_is_fitted_once_and_kept(everything: Ran) -> None:
    kinds = {c.exits.name: c.exits for c in METHODS}
    expected = sorted(e.resolved().preset for e in kinds.values() if e.fit != "none")
    assert sorted(everything.fits) == expected
    kept = {path.parent.name for path in (everything.folder / "tiny").glob("*/exitkit.json")}
    assert kept == set(kinds)


def test_a_second_run_fits_nothing_and_says_the_same(everything: Ran, counted: list[str]) -> None:
    names = ["adadiff paper", "static", "berxit", "carried interval"]
    before = len(counted)
    again = run_suite(
        tiny_suites.suite(networks={}),
        methods_for(names),
        budgets=[HIGH],
        folder=everything.folder,
        **SIZES,
    )
    assert len(counted) == before
    for name in names:
        first, second = (r[f"{name} at {HIGH:g}"] for r in (everything.result, again))
        assert second.cost == pytest.approx(first.cost)
        assert second.distance.mean == pytest.approx(first.distance.mean, rel=1e-4)
    assert "half the depth" not in [row.name for row in again.rows]


def test_without_a_folder_everything_is_fitted_anew(counted: list[str]) -> None:
    """Negative control: it is the folder that spares the fits."""
    for _ in range(2):
        before = len(counted)
        model = fitted(tiny_suites.suite(), BERXIT, Recipe(steps=1, batch_size=2))
        assert len(counted) == before + 1 and model.exit_config.preset == "berxit"


def test_a_budget_out_of_reach_is_noted_and_the_row_is_there() -> None:
    chosen = methods_for(["static", "carried interval"])
    result = run_suite(tiny_suites.suite(networks={}), chosen, budgets=[0.05], **SIZES)
    for method in chosen:
        name = f"{method.name} at 0.05"
        note = next(n for n in result.notes if n.startswith(f"{name}: not reachable, shown at"))
        assert re.search(r"shown at 0\.\d{3}\. budget=0\.\d+ is out of reach", note)
        shown = float(note.split("shown at ")[1].split(". ")[0])
        assert shown > 0.05 and result[name].cost == pytest.approx(shown, abs=0.25)


@pytest.mark.slow  # guidance in samplers: tests/sampling/test_loop.py
def test_a_conditional_suite_with_guidance(tmp_path: Path) -> None:
    chosen = methods_for(["adadiff relative", "carried interval", "deepcache"])
    options = {**SIZES, "budgets": [HIGH]}
    suite = tiny_suites.conditional()
    result = run_suite(suite, chosen, folder=tmp_path, **options)
    assert {f"{c.name} at {HIGH:g}" for c in chosen} < {row.name for row in result.rows}
    page = json.loads(result.to_json(tmp_path / "comparison.json").read_text())
    assert len(page["rows"]) == len(result.rows)
    # Negative control: other classes, or less guidance, give other images of the full model.
    for other in (
        replace(suite.sampler, conditions=lambda seeds: {"y": (seeds + 1) % 10}),
        replace(suite.sampler, guidance_scale=1.0),
    ):
        images = run_suite(replace(suite, sampler=other), chosen[-1:], **options).images["full"]
        assert not torch.allclose(result.images["full"], images, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": []}, "budgets must be in"),
        ({"budgets": [0.5, 1.5]}, "budgets must be in"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": []}, "seeds must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_fitted(
    options: dict[str, Any], said: str, counted: list[str]
) -> None:
    before = len(counted)
    with pytest.raises(ConfigError, match=said):
        run_suite(tiny_suites.suite(), METHODS, **{**SIZES, **options})
    assert len(counted) == before
