"""The command line: what it prints, what it leaves behind, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

pytest.importorskip("typer")
from typer.testing import CliRunner, Result

from exitkit import __main__ as command
from exitkit.benchmark import methods_for
from exitkit.cli import app
from exitkit.errors import ConfigError
from exitkit.report import style
from exitkit.surgery.registry import list_adapters

ROOT = Path(__file__).parent.parent
SUITE = "tests.tiny_suites:suite"
SMALL = ["--settings", str(ROOT / "tests" / "compare.toml"), "--seeds", "2", "--quiet"]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 40)  # how fine the figures are is no matter here


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_methods_are_listed_with_their_sources() -> None:
    lines = run("methods").output.splitlines()
    assert len(lines) == len(methods_for())
    for line, method in zip(lines, methods_for(), strict=True):
        assert line.startswith(method.name) and line.endswith(method.source)
        assert f"exits: {method.exits.name}" in line
    chosen = run("methods", "pabee*", "ase").output.splitlines()
    assert [line.split("exits:")[0].strip() for line in chosen] == ["pabee", "pabee batch", "ase"]


def test_adapters_are_listed_by_wildcard() -> None:
    everything = run("adapters").output.split()
    assert everything == list_adapters() and "cosmos3" in everything
    assert run("adapters", "cosmos*").output.split() == ["cosmos3"]
    assert run("adapters", "no such adapter").output == ""


def test_inspect_shows_where_a_suite_can_be_left() -> None:
    shown = run("inspect", SUITE).output
    assert "TokenNet" in shown
    assert all(f"blocks.{i}" in shown for i in range(6))


def test_inspect_takes_models_of_timm() -> None:
    shown = run("--threads", "1", "inspect", "timm/test_vit").output
    assert "VisionTransformer" in shown and "blocks.0" in shown


def test_the_story_of_a_pipeline_in_json(tmp_path: Path) -> None:
    work, exits = tmp_path / "work.json", str(tmp_path / "exits")
    told = {
        "calls": [{"class_labels": [1]}],
        "call": {"num_inference_steps": 3},
        "fit": {"steps": 1},
    }
    work.write_text(json.dumps({**told, "preset": "carried"}))
    pipe = ["tests.tiny_pipelines:tiny_dit", "--settings", str(work), "--json"]
    (name, boundaries), *_ = json.loads(run("inspect", *pipe).stdout).items()
    assert name == "transformer" and boundaries[0]["path"] == "transformer_blocks.0"
    fitted = json.loads(run("fit", *pipe, "--out", exits, "--quiet").stdout)
    assert (
        fitted["exits"] == ["transformer_blocks.0"] and (tmp_path / "exits" / "README.md").is_file()
    )
    options = ["--exits", exits, "--budget", "0.9", "--policy", "interval", "--quiet"]
    found = json.loads(run("calibrate", *pipe, *options).stdout)
    assert found["cost"] <= 0.92
    drawn = run("generate", *pipe, "--exits", exits, "--out", str(tmp_path / "out"), "--seeds", "2")
    assert json.loads(drawn.stdout)["cost"] < 1


def test_version_and_help_teach() -> None:
    import exitkit

    assert run("--version").stdout == f"exitkit {exitkit.__version__}\n"
    for command_name in ("inspect", "fit", "calibrate", "generate", "compare"):
        shown = " ".join(run(command_name, "--help").stdout.split())
        assert len(shown) > 200, command_name
    assert "Exit status" in run("--help").stdout


def test_compare_prints_a_table_and_leaves_reports_for_each_suite(tmp_path: Path) -> None:
    both = [SUITE, "tests.tiny_suites:conditional"]  # the second has no network beside it
    options = ["--policies", "static, deepcache", "--budget", "0.7", "--out", str(tmp_path)]
    result = run("compare", *both, *options, *SMALL)
    assert result.exit_code == 0
    for name in ("tiny", "tiny conditional"):
        folder = tmp_path / name
        table = (folder / "table.md").read_text()
        assert table in result.output and "deepcache at 0.7" in table
        assert ("half the depth" in table) is (name == "tiny")
        rows = json.loads((folder / "comparison.json").read_text())["rows"]
        assert {"full", "static at 0.7"} < {row["name"] for row in rows}
        assert "<html" in (folder / "report.html").read_text()[:200]
        assert f"report: {folder / 'report.html'}" in result.output
        assert (tmp_path / "exits" / name / "paper" / "exitkit.json").is_file()


def test_compare_takes_settings_and_prints_json(tmp_path: Path) -> None:
    work = tmp_path / "work.toml"
    recipe = "steps=2,batch_size=4,calibration=4"
    work.write_text(
        f'[compare]\npolicies = ["deepcache"]\nbudget = 0.7\nsteps = 4\nseeds = 3\nrecipe = "{recipe}"\n'
    )
    given = [SUITE, "--settings", str(work), "--out", str(tmp_path), "--json", "--quiet"]
    result = run("compare", *given, "--seeds", "2")
    told = json.loads(result.stdout)["tiny"]  # one object, nothing else
    assert {"full", "deepcache at 0.7"} < {row["name"] for row in told["rows"]}
    assert Path(told["report"]).is_file()
    saved = json.loads((tmp_path / "tiny" / "comparison.json").read_text())
    assert {**saved, "report": told["report"]} == told
    assert "3 seeds" not in (tmp_path / "tiny" / "table.md").read_text(), "options come first"
    work.write_text('[compare]\nrecipe = "stepps=2"\n')
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        run("compare", *given)
    work.write_text("[compare]\nbudgets = 0.7\n")
    with pytest.raises(ConfigError, match=r"work.toml: compare.budgets: Extra inputs"):
        run("compare", *given)


def labelled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of labelled noise."""
    source = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(4, 3, 160, 160, generator=source)  # noqa: E731
    return [(draw(), torch.arange(4)) for _ in range(2)]


def test_a_classifier_of_timm_is_fitted_and_calibrated(tmp_path: Path) -> None:
    work, weights, exits = tmp_path / "work.json", tmp_path / "w.safetensors", tmp_path / "exits"
    torch.manual_seed(1)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    told = {"preset": "branchynet", "data": "tests.test_cli:labelled", "weights": str(weights)}
    work.write_text(json.dumps({**told, "fit": {"steps": 1}}))
    given = ["timm/test_vit", "--settings", str(work), "--json", "--quiet"]
    fitted = json.loads(run("fit", *given, "--out", str(exits)).stdout)
    assert fitted["exits"] and (exits / "exits.safetensors").is_file()
    found = json.loads(run("calibrate", *given, "--exits", str(exits), "--budget", "0.99").stdout)
    assert found["cost"] <= 1 and json.loads((exits / "calibration.json").read_text())
    weights.write_bytes(b"no tensors")
    work.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="holds no weights of this VisionTransformer"):
        run("fit", *given, "--out", str(exits))


@pytest.mark.slow
def test_compare_takes_classifiers_too(tmp_path: Path) -> None:
    suites = [SUITE, "tests.tiny_suites:classes"]
    options = ["--policies", "*static*,berxit", "--budget", "0.7", "--out", str(tmp_path)]
    result = run("compare", *suites, *options, *SMALL)
    assert result.exit_code == 0
    folder = tmp_path / "tiny classes"
    table = (folder / "table.md").read_text()
    assert table in result.output and "accuracy" in table
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    wanted = {f"{name} at 0.7" for name in ("branchynet static", "uncertainty static", "berxit")}
    assert {row["name"] for row in rows if row["kind"] == "policy"} == wanted
    assert "is right on" in (folder / "report.html").read_text()
    kept = sorted(tmp_path.glob("exits/tiny classes/*/exitkit.json"))
    assert [place.parent.name for place in kept] == ["berxit", "branchynet", "relative"]
    # Again from what is kept, to the same rows.
    before = {row["name"]: row["cost"] for row in rows}
    assert run("compare", suites[1], *options, *SMALL).exit_code == 0
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert {row["name"]: row["cost"] for row in rows} == before


def test_methods_for_classifiers_are_listed() -> None:
    lines = run("methods", "--classifiers").output.splitlines()
    assert [line.split(" exits: ")[0].strip() for line in lines] == [
        c.name for c in methods_for(use="classification")
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["inspect", "timm/resnet51"], "no model 'resnet51'.* Did you mean"),
        (["inspect", "nowhere"], "no address of a suite"),
        (
            ["fit", "timm/test_vit", "--out", "nowhere"],
            "timm/test_vit has no sampler.*data='module:function'",
        ),
        (["fit", SUITE, "--out", "x", "--settings", "none.toml"], "no settings could be read"),
        (["inspect", "nowhere:suite"], "No module named 'nowhere'"),
        (["compare", SUITE, "--policies", "statik"], "no method 'statik'"),
        (["compare", "tests.tiny_suites:classes", "--policies", "ase"], "no method 'ase'"),
        (
            ["compare", "tests.tiny_suites:classes", "--budget", "0"],
            r"budgets must be in \(0, 1\]",
        ),
        (["methods", "nobody"], "no method 'nobody'"),
        (["compare", SUITE, "--budget", "1.5", "--policies", "deepcache"], "budget"),
        (["compare", SUITE, "--budget", "0", "--policies", "deepcache"], "budget"),
        (["compare", SUITE, "--seeds", "0", "--policies", "deepcache"], "seeds"),
    ],
)
def test_refusals_are_errors_that_say_what_is_wrong(
    arguments: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where outputs would go
    with pytest.raises(ConfigError, match=match):
        run(*arguments)


def test_a_budget_that_cannot_be_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    arguments = ["compare", SUITE, "--budget", "1.5", "--policies", "static", *SMALL]
    with pytest.raises(ConfigError, match=r"budgets must be in \(0, 1\], .*1\.5"):
        run(*arguments, "--out", str(tmp_path))
    assert not list(tmp_path.rglob("exitkit.json"))


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs `python -m exitkit` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["exitkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_refusals_end_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for arguments in (["inspect", "nowhere"], ["inspect", "tests.tiny_suites:without_blocks"]):
        assert main(monkeypatch, *arguments) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("exitkit: ")
        assert told.err.count("\n") == 1 and "Traceback" not in told.err
    # Negative control: what is fine ends with 0 and says nothing there.
    assert main(monkeypatch, "methods", "static") == 0
    told = capsys.readouterr()
    assert told.out.startswith("static") and told.err == ""


def test_without_typer_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "exitkit.cli")
    assert main(monkeypatch, "methods") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "The command line needs `typer`" in told and '"exitkit-torch[cli]"' in told


def test_the_extra_that_is_named_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = extras["optional-dependencies"]["cli"]
    assert any(entry.startswith("typer") for entry in listed)
    assert extras["scripts"]["exitkit"] == "exitkit.__main__:main"


@pytest.mark.slow  # an interpreter of its own; that comparing works is told above
def test_a_suite_in_the_current_folder_is_found_by_the_installed_command(tmp_path: Path) -> None:
    """As users run it: another process, another folder, a module that nobody installed."""
    (tmp_path / "my_suite.py").write_text("from tests.tiny_suites import suite\n")
    # The interpreter's own folder stands first on the path of a console script, not the user's.
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "exitkit"
    script.write_text("from exitkit.__main__ import main\n\nmain()\n")
    place = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    done = subprocess.run(
        [sys.executable, str(script), "inspect", "my_suite:suite"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": place},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "TokenNet" in done.stdout and "blocks.5" in done.stdout
