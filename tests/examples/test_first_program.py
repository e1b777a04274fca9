"""The program that README and the first page of the docs begin with, run as it stands."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.own_backbone import Denoiser

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": r"```python\n(import exitkit as ek\n.*?)```",
    "docs/index.rst": r"\.\. code-block:: python\n\n((?:   [^\n]*\n|\n)+)",
}
SHORT = {
    "ek.fit(model, sampler)": "ek.fit(model, sampler, steps=20)",
    "steps=50": "steps=10",
    "budget=0.5)": "budget=0.5, seeds=8)",
    '"mine", model)], sampler)': '"mine", model)], sampler, seeds=8)',
}
"""What the pages say, and what is enough to see that it runs."""


def program(page: str) -> str:
    found = re.search(PAGES[page], (ROOT / page).read_text(), re.DOTALL)
    assert found is not None, f"{page} has no first program"
    return textwrap.dedent(found[1])


def run(code: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "backbone": Denoiser(16).eval(),
        "x": torch.randn(2, 4, 4, 4),
        "t": torch.tensor([900.0, 10.0]),
        "scheduler": DDIMScheduler(),
        "shape": (4, 4, 4),
    }
    exec(compile(code, "first program", "exec"), names)
    return names


def test_both_pages_have_the_same_program() -> None:
    readme, index = (
        {ast.unparse(statement) for statement in ast.parse(program(page)).body} for page in PAGES
    )
    assert readme - index == {"print(model.trace.cost, model.trace.depth)"}
    assert index - readme == {"print(model.trace)"}


@pytest.mark.parametrize(
    "page", ["README.md", pytest.param("docs/index.rst", marks=pytest.mark.slow)]
)
def test_it_runs_from_beginning_to_end(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = program(page)
    for long, short in SHORT.items():
        assert code.count(long) == 1, f"{page} says {long!r} otherwise now"
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    found = run(code)
    assert isinstance(found["backbone"], Denoiser), "unwrap did not give the network back"
    assert found["sample"].trace.cost <= 0.52
    assert len(found["sample"].samples) == 16
    assert {"mine", "full"} <= {row.name for row in found["comparison"].rows}
    assert "<html" in Path("report.html").read_text()
    ek.unwrap(found["model"])
    example = (found["x"], found["t"])
    again = ek.ExitModel.from_pretrained(found["backbone"], "exits", example_inputs=example)
    for model in (again, found["model"]):
        assert model.calibration is not None and model.fitted["steps"] == 10


def test_a_program_of_old_spellings_does_not_run() -> None:
    with pytest.raises(AttributeError, match="SelfTrajectories"):
        run(program("README.md").replace("ek.Sampler(", "ek.SelfTrajectories("))
