"""The look: two themes, one colour for each family, one mark for each kind of rival.

Figures are drawn through matplotlib's object interface. `pyplot` would change global state in the
user's process: it picks a backend and keeps every figure alive.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from exitkit._compat import require
from exitkit.evaluation.rows import Kind, Row

DPI = 170


@dataclass(frozen=True)
class Theme:
    """Colours of one theme.

    Attributes:
        name: "light" or "dark".
        paper: Background.
        ink: Text and axes.
        quiet: Secondary text.
        rule: Grid lines.
        steps: Colour of "fewer steps".
        families: Colours of the entries, in order.
        low: Start of the sequential scale, near the background.
        high: End of the sequential scale.
    """

    name: str
    paper: str
    ink: str
    quiet: str
    rule: str
    steps: str
    families: tuple[str, ...]
    low: str
    high: str


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2430",
    quiet="#5b6675",
    rule="#e3e7ec",
    steps="#5b6675",
    families=("#0b7a75", "#c2500a", "#6a41c8", "#b02a68", "#3d6b00", "#1f62c9"),
    low="#dcebf7",
    high="#0a2f5c",
)
DARK = Theme(
    name="dark",
    paper="#171c24",
    ink="#e7ebf0",
    quiet="#9aa6b5",
    rule="#2c3440",
    steps="#9aa6b5",
    families=("#38c9bf", "#ff9a52", "#b196ff", "#ff7fb2", "#a9d34c", "#6ea8ff"),
    low="#22303f",
    high="#bfe3ff",
)

MARKERS: dict[Kind, str] = {
    "full": "*",
    "policy": "o",
    "mode schedule": "D",
    "fixed exit": "s",
    "no exit": "P",
    "fewer steps": "^",
    "network": "p",
}


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: File name without its ending.
        title: Heading.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        light: PNG bytes for a light page.
        size: Width and height in inches.
        paint: Fills a `matplotlib.figure.Figure` for a theme.
    """

    name: str
    title: str
    alt: str
    caption: str
    light: bytes
    size: tuple[float, float]
    paint: Callable[[Any, Theme], None]

    @cached_property
    def dark(self) -> bytes:
        """PNG bytes for a dark page, drawn when they are asked for: figures on their own are light."""
        return _png(self.paint, DARK, *self.size)

    @property
    def width(self) -> int:
        """Width in CSS pixels, 96 to an inch."""
        return round(self.size[0] * 96)

    @property
    def height(self) -> int:
        """Height in CSS pixels."""
        return round(self.size[1] * 96)


def family_order(rows: Sequence[Row]) -> list[str]:
    """The families in order of appearance."""
    return list(dict.fromkeys(row.family for row in rows if row.family))


def color(row: Row, order: Sequence[str], theme: Theme) -> str:
    """Colour of a row."""
    if row.kind == "full":
        return theme.ink
    if not row.family:
        return theme.steps
    return theme.families[order.index(row.family) % len(theme.families)]


def draw(
    paint: Callable[[Any, Theme], None],
    *,
    name: str,
    title: str,
    alt: str,
    caption: str,
    width: float,
    height: float,
) -> Picture:
    """Draws a figure for a light page.

    Arguments:
        paint: Fills a `matplotlib.figure.Figure` for a theme.
        name: File name without its ending.
        title: Heading.
        alt: Description for those who cannot see it.
        caption: How to read it.
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure, which can be drawn for a dark page, too.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    light = _png(paint, LIGHT, width, height)
    return Picture(name, title, alt, caption, light, (width, height), paint)


def ramp(theme: Theme, count: int) -> list[Any]:
    """Colours of an ordered series, from quiet to strong."""
    colors = require("matplotlib.colors", "report", "The report")
    scale = colormap(theme)
    if count == 1:
        return [colors.to_hex(scale(0.75))]
    return [colors.to_hex(scale(0.25 + 0.75 * i / (count - 1))) for i in range(count)]


def colormap(theme: Theme) -> Any:
    """The sequential scale of a theme: more is further from the background."""
    colors = require("matplotlib.colors", "report", "The report")
    middle = "#3d86c6" if theme.name == "light" else "#3f83b8"
    return colors.LinearSegmentedColormap.from_list("depth", [theme.low, middle, theme.high])


def _png(paint: Callable[[Any, Theme], None], theme: Theme, width: float, height: float) -> bytes:
    matplotlib = require("matplotlib", "report", "The report")
    figures = require("matplotlib.figure", "report", "The report")
    agg = require("matplotlib.backends.backend_agg", "report", "The report")
    with matplotlib.rc_context(_settings(theme)):
        figure = figures.Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        agg.FigureCanvasAgg(figure)
        paint(figure, theme)
        target = io.BytesIO()
        # A fixed creation note keeps the bytes of equal figures equal.
        figure.savefig(target, format="png", metadata={"Software": "exitkit"})
    return target.getvalue()


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.8,
        "text.color": theme.ink,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.rule,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "image.interpolation": "nearest",
    }


def log_ticks(axes: Any) -> None:
    """Plain numbers on a log axis, and more of them where it spans little.

    Arguments:
        axes: The axes, with their limits set.
    """
    ticker = require("matplotlib.ticker", "report", "The report")
    low, high = axes.get_ylim()
    if high / low < 300:
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
