"""Studies: every contender of the catalogue on a tiny backbone, fitted once, and how studies are found."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from exitkit.benchmark import (
    CONTENDERS,
    Contender,
    Study,
    contenders_for,
    fitted,
    fitting,
    load_study,
    run,
    run_study,
)
from exitkit.benchmark.methods import BERXIT, CARRIED, PLAIN, RELATIVE
from exitkit.benchmark.run import calibrated
from exitkit.calibration.paths import router
from exitkit.errors import CalibrationError, ConfigError
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel
from tests import tiny_studies

SIZES: dict[str, Any] = {
    "sampler_steps": 4,
    "seeds": 2,
    "fit_steps": 2,
    "batch_size": 4,
    "calibration_seeds": 4,
    "progress": False,
}
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
    result = run_study(
        tiny_studies.study(), CONTENDERS, budget=HIGH, folder=folder, static=False, **SIZES
    )
    return Ran(result=result, fits=list(counted), folder=folder)


def test_every_contender_has_a_row_without_blanks(everything: Ran) -> None:
    result = everything.result
    rows = {row.name: row for row in result.rows}
    for contender in CONTENDERS:
        row = rows[f"{contender.name} at {HIGH:g}"]
        assert row.kind == "policy" and row.steps == 4 and row.count == 2
        numbers = [row.cost, row.layers, row.distance.mean, row.distance.low, row.distance.high]
        assert row.clock is not None and row.clock.median > 0
        assert all(n is not None and math.isfinite(n) and n >= 0 for n in numbers), row
    # A pilot on other seeds says how many steps a cost buys; all of them are no rival.
    met = [rows[f"{c.name} at {HIGH:g}"].against_steps is not None for c in CONTENDERS]
    assert sum(met) > len(CONTENDERS) / 2
    assert rows["half the depth"].kind == "network"
    assert rows["half the depth"].against_steps is not None
    lines = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1 and all(all(line) for line in cells)
    assert not any("nan" in cell or "inf" in cell for line in cells for cell in line)


def test_rows_are_within_the_budget_or_noted(everything: Ran) -> None:
    notes = everything.result.notes
    over: list[str] = []
    for contender in CONTENDERS:
        name = f"{contender.name} at {HIGH:g}"
        mine = [note for note in notes if note.startswith(f"{name}:")]
        # The seeds of the table are others than those of the calibration, which costs that hang on
        # one decision a batch do not forgive.
        if not mine and contender.name not in COUPLED:
            over += [name] if everything.result[name].cost > HIGH + 0.2 else []
        else:
            said = ("not reachable, shown at", "nothing between a cost of")
            assert all(any(words in note for words in said) for note in mine)
    # Its head of two optimiser steps sees no difference between rows: all of them tip at once.
    assert set(over) <= {f"calm meta at {HIGH:g}"}
    beyond = [note for note in notes if "not reachable" in note]
    met = [c for c in CONTENDERS if not any(n.startswith(c.name + " at") for n in beyond)]
    assert len(met) > len(CONTENDERS) / 2, "else the budget says nothing"


def test_each_kind_of_exits_is_fitted_once_and_kept(everything: Ran) -> None:
    kinds = {c.exits.name: c.exits for c in CONTENDERS}
    expected = sorted(e.resolved().preset for e in kinds.values() if e.fit != "none")
    assert sorted(everything.fits) == expected
    kept = {path.parent.name for path in (everything.folder / "tiny").glob("*/exitkit.json")}
    assert kept == set(kinds)


def test_a_second_run_fits_nothing_and_says_the_same(everything: Ran, counted: list[str]) -> None:
    names = ["adadiff paper", "static", "berxit", "carried interval"]
    before = len(counted)
    again = run_study(
        tiny_studies.study(),
        contenders_for(names),
        budget=HIGH,
        folder=everything.folder,
        static=False,
        networks=(),
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
        model = fitted(tiny_studies.study(), BERXIT, steps=1, sampler_steps=2, batch_size=2)
        assert len(counted) == before + 1 and model.exit_config.preset == "berxit"


def test_a_budget_out_of_reach_is_noted_and_the_row_is_there() -> None:
    chosen = contenders_for(["static", "carried interval"])
    result = run_study(tiny_studies.study(networks={}), chosen, budget=0.05, static=False, **SIZES)
    for contender in chosen:
        name = f"{contender.name} at 0.05"
        note = next(n for n in result.notes if n.startswith(f"{name}: not reachable, shown at"))
        assert re.search(r"shown at 0\.\d{3}\. budget=0\.\d+ is out of reach", note)
        shown = float(note.split("shown at ")[1].split(". ")[0])
        assert shown > 0.05 and result[name].cost == pytest.approx(shown, abs=0.25)


def test_heads_that_cost_more_than_they_save_do_not_end_a_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def refuse(*args: Any, budget: float, **options: Any) -> None:
        asked.append(budget)
        raise CalibrationError("budget is out of reach")

    monkeypatch.setattr(run, "calibrate", refuse)
    model = tiny_studies.wrapped("relative")
    for name, field in (("calm meta", "threshold"), ("adadiff relative", "threshold")):
        contender = contenders_for([name])[0]
        options = {"sampler_steps": 2, "count": 2}
        entry, note = calibrated(tiny_studies.study(), contender, model, 0.5, **options)
        assert asked[-1] == 1.0 and asked[-6] == 0.5 and len(set(asked)) == 6
        tunable = entry.policy.tuning() if entry.policy else None
        assert tunable is not None and getattr(entry.policy, field) == tunable.cheap
        assert note is not None and "costs more than the full model" in note
    with pytest.raises(CalibrationError, match="static at 0.5: no setting up to the full cost"):
        calibrated(tiny_studies.study(), contenders_for(["static"])[0], model, 0.5, **options)


def test_fits_on_walks_and_no_fit_at_all(counted: list[str]) -> None:
    study = tiny_studies.study()
    options: dict[str, Any] = {"steps": 5, "sampler_steps": 3, "batch_size": 2, "walks": 4}
    torch.manual_seed(0)
    before = len(counted)
    plain = fitted(study, PLAIN, **options)
    assert len(counted) == before, "plain reuse needs no fit"
    carried = fitted(study, CARRIED, **options, fit_options={"mixed_precision": "bf16"})
    assert len(counted) == before + 1
    assert plain.exit_config.output.kind == carried.exit_config.output.kind == "carried"


def test_fits_depend_on_the_seed_alone() -> None:
    study = tiny_studies.study()
    options: dict[str, Any] = {"steps": 2, "sampler_steps": 3, "batch_size": 2}
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))  # what went on before must not matter
        models.append(fitted(study, RELATIVE, seed=seed, **options).state_dict())
    assert all(torch.equal(v, models[1][n]) for n, v in models[0].items())
    assert any(not torch.equal(v, models[2][n]) for n, v in models[0].items())


# --- conditions and guidance ----------------------------------------------------------------------


def test_a_conditional_study_with_guidance(tmp_path: Path) -> None:
    chosen = contenders_for(["adadiff relative", "carried interval", "deepcache"])
    options = {**SIZES, "static": False, "budget": HIGH}
    study = tiny_studies.conditional()
    result = run_study(study, chosen, folder=tmp_path, **options)
    assert {f"{c.name} at {HIGH:g}" for c in chosen} < {row.name for row in result.rows}
    page = json.loads(result.to_json(tmp_path / "comparison.json").read_text())
    assert len(page["rows"]) == len(result.rows)
    # Negative control: other classes, or less guidance, give other images of the full model.
    for other in (
        replace(study, inputs=lambda rows: {"y": (rows + 1) % 10}),
        replace(study, guidance_scale=1.0),
    ):
        images = run_study(other, chosen[-1:], fewer_steps=False, **options).images["full"]
        assert not torch.allclose(result.images["full"], images, atol=1e-3)


# --- names and addresses --------------------------------------------------------------------------


def test_contenders_by_name_and_wildcard() -> None:
    assert contenders_for() == list(CONTENDERS)
    assert [c.name for c in contenders_for(["pabee*", "ase"])] == ["pabee", "pabee batch", "ase"]
    assert contenders_for(["static", "static"]) == contenders_for(["static"])
    with pytest.raises(ConfigError, match=r"no contender 'oracles' .*Did you mean 'oracle'"):
        contenders_for(["oracles"])
    names = [c.name for c in CONTENDERS]
    assert len(set(names)) == len(names) and all(c.source for c in CONTENDERS)
    # One name, one kind of exits: the folder goes by it.
    for contender in CONTENDERS:
        same = [c.exits for c in CONTENDERS if c.exits.name == contender.exits.name]
        assert all(e.resolved() == same[0].resolved() and e.fit == same[0].fit for e in same)


def test_contenders_ask_for_policies_of_their_model() -> None:
    oracle = next(c for c in CONTENDERS if c.name == "oracle priced")
    model = tiny_studies.wrapped("relative")
    asked = oracle.asked(model)
    assert asked.costs == tuple(min(1.0, e.cost) for e in model.exits)  # type: ignore[union-attr]
    plain = Contender("x", RELATIVE, "schedule", "")
    assert plain.asked(model) == "schedule"


def test_studies_are_found_by_their_address() -> None:
    assert load_study("tests.tiny_studies:ready") is tiny_studies.ready
    made = load_study("tests.tiny_studies:study")
    assert isinstance(made, Study) and made.name == "tiny"


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("tests.tiny_studies", "no address of a study. Expected module:name"),
        ("tests.tiny_studies:", "no address of a study"),
        (":study", "no address of a study"),
        ("", "no address of a study"),
        ("nowhere.at.all:study", "ModuleNotFoundError: No module named 'nowhere'"),
        ("tests.tiny_studies:studdy", "AttributeError: .*'studdy'"),
        (".tiny_studies:study", "no address of a study"),
        ("tests.tiny_studies:no_study", "gives function, expected an exitkit.benchmark.Study"),
        ("tests.tiny_studies:SHAPE", "gives tuple, expected an exitkit.benchmark.Study"),
    ],
)
def test_addresses_without_a_study_say_what_is_there(address: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_study(address)


def test_errors_inside_a_study_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_study.py").write_text("def study():\n    raise RuntimeError('no data')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="no data"):
        load_study("broken_study:study")
    sys.modules.pop("broken_study", None)
