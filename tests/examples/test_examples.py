"""The examples run as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interpreter import ROOT, Interpreter


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


WARM = (
    "torch",
    "diffusers.models.transformers",
    "diffusers.schedulers.scheduling_ddim",
    "timm",
    "torchmetrics.image.fid",
    "matplotlib.backends.backend_agg",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """What every script begins with is most of what a short one costs."""
    folder, flags = tmp_path_factory.mktemp("examples"), ("-W", "error::UserWarning")
    with Interpreter(folder, *WARM, flags=flags) as interpreter:
        yield interpreter


def as_main(module: str, *arguments: str) -> str:
    """A program that does what `python -m module arguments` does."""
    return f"""
import runpy, sys
sys.argv = [{module!r}, *{arguments!r}]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow  # a minute: its own networks are trained ones
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    done = run("examples/demo.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    is_complete(done.stdout, tmp_path)


def is_complete(told: str, folder: Path) -> None:
    for wanted in ("trainable", "report:", "done in"):
        assert wanted in told
    page = (folder / "report.html").read_text()
    assert "fewer steps" in page
    assert list(folder.glob("*.png"))


SMALL = """
import dataclasses, sys, warnings
warnings.simplefilter("default")  # four seeds meet no budget exactly, and that is told
import exitkit as ek
from examples import demo
from examples.reproduction.models.uvit import UViT, UViTConfig
from exitkit.report import style

style.DPI = 40  # how fine the figures are is no matter here

def network():
    size = {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    return UViT(UViTConfig(img_size=32, in_chans=1, **size)).eval()

def exits(preset):
    model = ek.wrap(network(), preset, example_inputs=demo.example_inputs())
    model.heads.mark_fitted()
    return model

digits = demo.load_digits()
few = dataclasses.replace(digits, held_out_images=digits.held_out_images[:100])
demo.load_digits = lambda: few
demo.load_uvit, demo.load_exits = network, exits
sys.argv = ["demo", "--quick", "--out", %r]
demo.main()
"""


def test_the_demo_runs_to_its_end_on_small_networks(python: Interpreter, tmp_path: Path) -> None:
    done = python.run(SMALL % str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    is_complete(done.stdout, tmp_path)


def test_a_wrong_call_of_the_demo_does_not_look_like_a_good_one(
    python: Interpreter, tmp_path: Path
) -> None:
    done = python.run(as_main("examples.demo", "--quick", "--out", str(tmp_path), "--nonsense"))
    assert done.returncode != 0 and "--nonsense" in done.stderr
    assert not list(tmp_path.iterdir())


SLOW = ("timm_classifier", "compare_policies", "pipeline")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in sorted((ROOT / "examples").glob("*.py"))
        if path.stem not in ("__init__", "demo")
    ],
)
def test_a_script_holds_what_it_asserts(name: str, python: Interpreter) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert 40 <= len(text.splitlines()) <= 80 and "assert" in text
    done = python.run(as_main(f"examples.{name}"))
    assert done.returncode == 0, done.stderr[-2000:]
