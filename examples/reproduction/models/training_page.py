"""The page on training: `python -m examples.reproduction.models.training_page` writes it from the logs."""

from __future__ import annotations

import re
from pathlib import Path

from .checkpoint import HERE
from .trainings import RUNS, Run

PAGE = Path("benchmarks/results/training.md")
GROUPS = {
    "main": "Exits of the tables",
    "control": "The networks alone, trained on for as long",
    "loss": "One part of the article's loss changed",
    "recipe": "One part of the training changed",
}
LINE = re.compile(r"^step=(\d+) held_out full=([\d.]+) exits=([\d.,]+)")


def last(log: Path) -> tuple[int, float, list[float]] | None:
    """The last held-out figures of a log.

    Args:
        log: The log.

    Returns:
        Step, error of the full output, errors of the exits; None where the log has none.
    """
    found = [m for m in map(LINE.match, log.read_text().splitlines()) if m] if log.is_file() else []
    if not found:
        return None
    step, full, exits = found[-1].groups()
    return int(step), float(full), [float(e) for e in exits.split(",")]


def row(run: Run, logs: Path) -> str | None:
    """A row of the table; None where the training has not ended."""
    found = last(logs / f"{run.name}.log")
    if found is None or found[0] < run.steps:
        return None
    steps, full, exits = found
    shown = " ".join(f"{e:.4f}" for e in exits) if run.group != "control" else "-"
    changes = " ".join(run.options) or "-"
    return f"| {run.network} | {run.preset} | {steps:,} | {changes} | {full:.4f} | {shown} |"


def page(logs: Path) -> str:
    """The page.

    Args:
        logs: Folder of the logs.
    """
    lines = [
        "# Trained exits",
        "",
        "Squared error against the noise on the 500 held-out digits, at timesteps spread over all, of "
        "the averaged weights in float16. One run each, seed 0, batches of 64 unless said. `make train` "
        "makes what is missing.",
    ]
    for group, title in GROUPS.items():
        runs = [run for run in RUNS if run.group == group]
        rows = {run.name: row(run, logs) for run in runs}
        done = [text for text in rows.values() if text is not None]
        lines += ["", f"## {title}", ""]
        if done:
            head = ["| network | preset | steps | changes | full | exits |", "| --- " * 6 + "|"]
            lines += [*head, *done, ""]
        missing = [f"`{name}`" for name, text in rows.items() if text is None]
        if missing:
            lines.append(f"Not run yet: {', '.join(missing)}.")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(HERE / "logs"))
