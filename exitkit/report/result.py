"""What a comparison holds: rows, pictures of a few seeds, and where depth was spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from exitkit.evaluation.diagnostics import LayerErrors, UncertaintyMaps
from exitkit.evaluation.metrics import Interval
from exitkit.evaluation.timing import Ratio
from exitkit.execution.trace import Trace
from exitkit.report.rows import Rows

if TYPE_CHECKING:
    from exitkit.report.style import Picture

Kind = Literal["full", "policy", "mode schedule", "fixed exit", "no exit", "fewer steps", "network"]


@dataclass(frozen=True)
class Row:
    """One rival under one sampler.

    Attributes:
        name: Unique among the rows.
        kind: What it is: the full model, a policy, or a baseline that every policy has to beat.
        family: The curve of the entry it belongs to; empty for the full model and for fewer steps.
        sampler: Name of the sampler.
        steps: Sampler steps.
        seeds: Number of seeds behind every number.
        cost: Executed MACs over those of the full run, heads included.
        layers: Executed blocks over those of the full run; None for another network.
        clock: Wall clock over that of the bare full model, by batch; None if not timed.
        distance: Paired distance to the full run, with a 95 % bootstrap interval over seeds.
        against_steps: Distance over that of the same sampler with fewer steps at equal cost.
        frechet: Frechet distance to the reference images.
        confidence: Mean largest class probability.
        agreement: Share of images that keep the full run's label.
        timestep_share: Share of the depth variance that the timestep explains; None where depth
            does not vary.
    """

    name: str
    kind: Kind
    family: str
    sampler: str
    steps: int
    seeds: int
    cost: float
    layers: float | None
    distance: Interval
    clock: Ratio | None = None
    against_steps: Interval | None = None
    frechet: float | None = None
    confidence: float | None = None
    agreement: float | None = None
    timestep_share: float | None = None


@dataclass(frozen=True)
class Comparison(Rows[Row]):
    """The result of `compare`.

    Attributes:
        rows: All rivals; the full model first.
        title: Heading of the report.
        notes: What a reader has to know before believing the table.
        settings: What was run, in words and numbers that do not depend on the machine.
        machine: What does: the processor's name, threads, the share of it that others used.
        images: Row name to the images of the first few seeds, (kept, *shape).
        traces: Row name to what was executed, all seeds side by side.
        errors: Entry name to the error of every exit by timestep.
        maps: Entry name to maps of predicted and actual uncertainty.
    """

    rows: tuple[Row, ...]
    title: str = "Early exit, compared"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)
    traces: Mapping[str, Trace] = field(default_factory=dict)
    errors: Mapping[str, LayerErrors] = field(default_factory=dict)
    maps: Mapping[str, UncertaintyMaps] = field(default_factory=dict)

    def with_notes(self, notes: Sequence[str]) -> Comparison:
        """The comparison with further notes.

        Arguments:
            notes: Sentences.

        Returns:
            A copy.
        """
        return replace(self, notes=(*self.notes, *notes))

    @cached_property
    def figures(self) -> list[Picture]:
        """The figures of the report, drawn when first asked for.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from exitkit.report.figures import figures

        return figures(self)

    def to_markdown(self) -> str:
        """The table, as Markdown with aligned columns."""
        from exitkit.report.table import markdown

        return markdown(self.rows)

    def to_json(self, path: str | Path) -> Path:
        """Writes rows, settings and machine.

        Arguments:
            path: Target file; its folder is made if missing.

        Returns:
            The path.
        """
        data = {
            "title": self.title,
            "notes": list(self.notes),
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "rows": [asdict(row) for row in self.rows],
        }
        return _write(path, json.dumps(data, indent=2, allow_nan=False) + "\n")

    def to_html(self, path: str | Path) -> Path:
        """Writes one self-contained page: no script, no request to anywhere.

        Arguments:
            path: Target file; its folder is made if missing.

        Returns:
            The path.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from exitkit.report.page import page

        return _write(path, page(self))

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Writes every figure of the report as a PNG file.

        Arguments:
            folder: Target folder, made if missing.

        Returns:
            The paths.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for figure in self.figures:
            path = folder / f"{figure.name}.png"
            path.write_bytes(figure.light)
            paths.append(path)
        return paths


def _write(path: str | Path, text: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
