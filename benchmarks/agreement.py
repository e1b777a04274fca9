"""Whether the blocks found are those that the libraries themselves name.

    python -m benchmarks.agreement      # writes docs/agreement.md, some minutes

timm lists feature stages (`feature_info`), diffusers the classes of its repeated blocks
(`_repeated_blocks`, and `_no_split_modules` where that is missing). Neither was made to say where a
network can be left, so a difference is no fault by itself; the page lists every one.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitkit.errors import ExitKitError
from exitkit.surgery.spec import Plan
from exitkit.wrapping import inspect
from tests.zoo import specimens

PAGE = Path("docs/agreement.md")


def compare_timm(model: Any, plan: Plan) -> tuple[str, str]:
    """Compares stages with `feature_info`: a word, and the difference."""
    info = getattr(model, "feature_info", None)
    modules = [str(f["module"]) for f in info] if info else []
    if not modules:
        return "not named", ""
    stages = [s.path.split("#")[0] for s in plan.stages]
    if stages == modules:
        return "the same", ""
    lost = [m for m in modules if not any(_related(m, s) for s in stages)]
    if not lost and set(modules) <= set(stages):
        return "the same and more", f"also {', '.join(s for s in stages if s not in modules)}"
    if not lost:
        return "finer or coarser", f"{', '.join(stages)} for {', '.join(modules)}"
    return "differs", f"{', '.join(stages)}; timm has also {', '.join(lost)}"


def _related(module: str, stage: str) -> bool:
    return module == stage or module.startswith(f"{stage}.") or stage.startswith(f"{module}.")


def compare_diffusers(model: Any, plan: Plan) -> tuple[str, str]:
    """Compares classes of stages with those that the class names."""
    named = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None)
    if not named:
        return "not named", ""
    inside = {type(m).__name__ for m in model.modules()}
    wanted = set(named) & inside
    calls = {c.path for s in plan.stages for c in s.calls}
    found = {type(model.get_submodule(path)).__name__ for path in calls}
    if found == wanted:
        return "the same", ""
    covered = {type(m).__name__ for path in calls for m in model.get_submodule(path).modules()}
    if wanted <= found:
        return "the same and more", f"also {', '.join(sorted(found - wanted))}"
    if wanted <= covered:
        return "finer or coarser", f"{', '.join(sorted(found))} hold {', '.join(sorted(wanted))}"
    lost = sorted(wanted - covered)
    return "differs", f"{', '.join(sorted(found))}; named too, but no stage: {', '.join(lost)}"


def main() -> None:
    """Writes the page."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    rows: list[tuple[str, str, str]] = []
    for name, specimen in specimens().items():
        if specimen.package not in ("timm", "diffusers"):
            continue
        model: nn.Module = specimen.make()
        try:
            plan = inspect(model, example_inputs=specimen.inputs(4))
        except ExitKitError as error:
            rows.append((name, "refused", type(error).__name__))
            continue
        compare = compare_timm if specimen.package == "timm" else compare_diffusers
        rows.append((name, *compare(model, plan)))
        print(*rows[-1], flush=True)
    about = (__doc__ or "").split("\n\n")[2].strip()
    lines = ["# Agreement with the libraries' own lists", "", about, ""]
    lines += [
        "| library | the same | and more | finer or coarser | differs | not named | refused |"
    ]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for package in ("diffusers", "timm"):
        counts = Counter(word for name, word, _ in rows if name.startswith(package))
        words = ("the same", "the same and more", "finer or coarser", "differs", "not named")
        cells = " | ".join(str(counts[word]) for word in (*words, "refused"))
        lines.append(f"| {package} | {cells} |")
    lines += ["", "| model | agreement | difference |", "| --- | --- | --- |"]
    lines += [f"| {name} | {word} | {text} |" for name, word, text in rows if word != "the same"]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
