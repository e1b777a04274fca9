"""The benchmark of the article's tables in its smoke version: does a job run, and is it kept?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mlxtend")

from examples.reproduction.small import __main__ as command
from examples.reproduction.small import tables
from examples.reproduction.small.settings import FULL, SMOKE
from examples.reproduction.small.variants import ABLATIONS
from exitkit.benchmark import methods_for


def test_the_smoke_version_is_smaller_in_every_number() -> None:
    for name, value in vars(SMOKE).items():
        if isinstance(value, int):
            assert value < getattr(FULL, name), name


def test_ablations_change_one_part_of_the_recipe_each() -> None:
    whole = ABLATIONS[0].exits.resolved().model_dump()
    changed = []
    for method in ABLATIONS[1:]:
        config = method.exits.resolved().model_dump()
        parts = [
            (group, key)
            for group in ("uncertainty", "output", "loss")
            for key in whole[group]
            if config[group][key] != whole[group][key]
        ]
        assert len(parts) == 1, f"{method.name}: {parts}"
        changed.append(parts[0])
        assert method.policy == ABLATIONS[0].policy
    assert len(set(changed)) == len(changed)
    names = [c.exits.name for c in ABLATIONS]
    assert len(set(names)) == len(names), "fitted exits are kept by name"


def test_every_job_is_in_one_group() -> None:
    assert sorted(job for group in tables.GROUPS for job in group) == sorted(tables.JOBS)


def test_workers_get_whole_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def process(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command[3:])
        return SimpleNamespace(returncode=int("policies_dit" in command))

    monkeypatch.setattr(command.subprocess, "run", process)
    jobs = ["table6_ablations", "policies_dit", "figures"]
    with pytest.raises(SystemExit, match="failed: policies_dit. What is done is kept"):
        command.main([*jobs, "--workers", "2", "--smoke"])
    options = ["--out=docs/results", "--work=runs/reproduce", "--smoke"]
    found = sorted([a for a in args if not a.startswith("--threads=")] for args in ran)
    assert found == [["policies_dit", *options], ["table6_ablations", "figures", *options]]


def test_unknown_jobs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["table7"])
    assert ended.value.code == 2 and "no job table7; jobs: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_job_runs_once_and_leaves_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["table6_ablations", "--smoke", "--out", str(tmp_path / "pages")]
    arguments += ["--work", str(tmp_path / "work")]
    state = torch.get_rng_state()
    command.main(arguments)
    told = capsys.readouterr().out
    assert "table6_ablations: begins" in told and "done before" not in told
    page = (tmp_path / "pages" / "table6_ablations.md").read_text()
    assert "`python -m examples.reproduction.small table6_ablations --smoke`" in page
    for method in ABLATIONS:
        assert f"| {method.name} " in page
    rows = json.loads((tmp_path / "work" / "table6_ablations.json").read_text())["rows"]
    assert {row["name"] for row in rows} >= {c.name for c in ABLATIONS}
    command.main(arguments)
    assert "table6_ablations: done before" in capsys.readouterr().out
    torch.set_rng_state(state)


def test_a_finished_job_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(bench: tables.Bench) -> object:
        raise AssertionError("run again")

    monkeypatch.setitem(tables.JOBS, "figures", job)
    bench = tables.Bench(SMOKE, tmp_path / "work", lambda text: None)
    page = tmp_path / "pages" / "figures.md"
    with pytest.raises(AssertionError, match="run again"):
        tables.run_job("figures", bench, tmp_path / "pages", "")
    for path in (page, bench.work / "figures.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert tables.run_job("figures", bench, tmp_path / "pages", "") == page


def test_rows_of_the_papers_tables_are_methods() -> None:
    assert [c.name for c in methods_for(tables.PAPER_ROWS)] == list(tables.PAPER_ROWS)
