"""A comparison as files: one page with everything in it, or its figures alone."""

from __future__ import annotations

from pathlib import Path

from exitkit.errors import expect
from exitkit.evaluation.results import Comparison
from exitkit.report.figures import figures
from exitkit.report.page import page
from exitkit.report.style import Picture

_RUN = "Pass what ek.compare(...) returned, or ek.Comparison.from_json(path)."


def write_report(
    comparison: Comparison, path: str | Path, *, pictures: str | Path | None = None
) -> Path:
    """Writes one self-contained HTML page: no script, no request to anywhere.

    Arguments:
        comparison: What `compare` returned, or `Comparison.from_json` read.
        path: Target file; its folder is made if missing.
        pictures: A folder that the figures are written to as well, as by `save_figures`, drawn once.

    Returns:
        The path.

    Raises:
        ConfigError: If it is no comparison.
        MissingExtraError: If matplotlib is not installed.
    """
    expect("write_report", comparison, Comparison, "a comparison", _RUN)
    drawn = figures(comparison)
    text = page(comparison, drawn)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if pictures is not None:
        _save(drawn, Path(pictures))
    return path


def save_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes every figure of the report as a PNG file.

    Arguments:
        comparison: What `compare` returned, or `Comparison.from_json` read.
        folder: Target folder, made if missing.

    Returns:
        The paths.

    Raises:
        ConfigError: If it is no comparison.
        MissingExtraError: If matplotlib is not installed.
    """
    expect("save_figures", comparison, Comparison, "a comparison", _RUN)
    return _save(figures(comparison), Path(folder))


def _save(drawn: list[Picture], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in drawn:
        path = folder / f"{figure.name}.png"
        path.write_bytes(figure.light)
        paths.append(path)
    return paths
