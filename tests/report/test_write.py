"""Reports as files."""

from __future__ import annotations

import struct
import sys

import pytest

from exitkit.errors import MissingExtraError
from exitkit.evaluation.results import Comparison
from exitkit.report import save_figures, style, write_report


def test_figures_are_png_files(comparison, monkeypatch, tmp_path):
    monkeypatch.setattr(style, "DPI", 110)
    paths = save_figures(comparison, tmp_path / "figures")
    assert [path.stem for path in paths] == [
        "tradeoff",
        "samples",
        "differences",
        "depth_by_timestep",
        "error_by_layer",
        "loss_by_timestep",
        "uncertainty_mine",
    ]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 500 and height > 100


def test_a_missing_matplotlib_names_the_extra(comparison, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fresh = Comparison(rows=comparison.rows)
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[report\]"):
        write_report(fresh, tmp_path / "report.html")


def test_figures_come_with_the_page(comparison, monkeypatch, tmp_path):
    monkeypatch.setattr(style, "DPI", 40)  # how fine they are is no matter here
    write_report(comparison, tmp_path / "report.html", pictures=tmp_path / "drawn")
    alone = save_figures(comparison, tmp_path / "alone")
    assert alone
    for path in alone:
        assert (tmp_path / "drawn" / path.name).read_bytes() == path.read_bytes()
    # The control: none without a folder.
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "drawn", "alone"}
