"""The examples run as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "option", [(), pytest.param(("--nonsense",), marks=pytest.mark.slow)], ids=["right", "wrong"]
)
def test_the_demo_runs_to_its_end(option: tuple[str, ...], tmp_path: Path) -> None:
    done = run("examples/demo.py", "--quick", "--out", str(tmp_path), *option)
    if option:  # the control: a wrong call must not look like a good one
        assert done.returncode != 0
        assert not list(tmp_path.iterdir())
        return
    assert done.returncode == 0, done.stderr[-2000:]
    for wanted in ("trainable", "report:", "done in"):
        assert wanted in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "fewer steps" in page
    assert list(tmp_path.glob("*.png"))


SLOW = ("timm_classifier", "compare_policies", "pipeline")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in sorted((ROOT / "examples").glob("*.py"))
        if path.stem not in ("__init__", "demo")
    ],
)
def test_a_script_holds_what_it_asserts(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert 40 <= len(text.splitlines()) <= 80 and "assert" in text
    done = run("-W", "error::UserWarning", "-m", f"examples.{name}")
    assert done.returncode == 0, done.stderr[-2000:]
