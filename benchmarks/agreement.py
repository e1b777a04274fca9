"""Whether the blocks found are those that the libraries themselves name.

    python -m benchmarks.agreement             # writes docs/agreement.md, some minutes
    python -m benchmarks.agreement hrnet vgg   # prints the rows of these models alone

timm lists feature stages (`feature_info`), diffusers the classes of its repeated blocks
(`_repeated_blocks`, and `_no_split_modules` where that is missing). Neither was made to say where a
network can be left, so a difference is no fault by itself; the page lists every one, with the
reason as the dry run shows it: where the named module lies relative to our stages.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.relations import (
    ENDS,
    HOLDS,
    INSIDE,
    NO_DIFFERENCE,
    PART,
    SAME,
    UNKNOWN,
    WIDER,
    Places,
)
from exitkit.errors import ExitKitError
from exitkit.surgery.plan import plan_of
from exitkit.surgery.probe import probe
from exitkit.surgery.registry import registry
from exitkit.surgery.spec import Stage
from tests.zoo import Specimen, specimens

PAGE = Path("docs/agreement.md")
WORDS = ("the same", "the same and more", "finer or coarser", "differs", "not named", "refused")
NESTED = (SAME, PART, HOLDS, WIDER, INSIDE, ENDS)  # one list is the finer one
SHOWN = 4  # names listed in full before they are counted


@dataclass(frozen=True)
class Row:
    """One model of the page: a word of `WORDS`, and the reasons for every difference."""

    name: str
    word: str
    reasons: tuple[str, ...] = ()


def listed(names: Iterable[str]) -> str:
    """Names in words: all of a few, the ends of many."""
    known = list(dict.fromkeys(names))
    if len(known) > SHOWN:
        return f"`{known[0]}` to `{known[-1]}` ({len(known)})"
    return ", ".join(f"`{name}`" for name in known)


def by_reason(places: dict[str, str]) -> tuple[str, ...]:
    """One sentence for each reason, the names that it holds for in front."""
    found: dict[str, list[str]] = {}
    for name, place in places.items():
        if place not in NO_DIFFERENCE:
            found.setdefault(place, []).append(name)
    return tuple(f"{listed(names)}: {place}" for place, names in found.items())


def compare_timm(model: Any, places: Places) -> tuple[str, tuple[str, ...]]:
    """Compares stages with `feature_info`: a word, and the reasons for what differs."""
    info = getattr(model, "feature_info", None)
    modules = [str(f["module"]) for f in info] if info else []
    if not modules:
        return "not named", ()
    found = {m: places.of(m) for m in modules}
    modules = [places.resolve(m) for m in modules]
    stages = list(places.plan.stages)
    more = [s for s in stages if not any(_related(m, s) for m in modules)]
    reasons = by_reason({m or "(no name)": place for m, place in found.items()})
    reasons += _unnamed(more, modules, places)
    if all(place == SAME for place in found.values()):
        return ("the same and more" if more else "the same"), reasons
    if any(place not in NESTED for place in found.values()):
        return "differs", reasons
    return "finer or coarser", reasons


def _related(module: str, stage: Stage) -> bool:
    path = stage.path.split("#")[0]
    return module == path or module.startswith(f"{path}.") or path.startswith(f"{module}.")


def _unnamed(more: list[Stage], modules: list[str], places: Places) -> tuple[str, ...]:
    """Why stages of ours are not among those that timm names."""
    found: dict[str, str] = {}
    named = [s for s in places.plan.stages if any(_related(m, s) for m in modules)]
    for stage in more:
        following = next((s for s in named if s.index > stage.index), None)
        if not named:
            place = "ours: what timm names leads to none of them"
        elif following is None:
            place = "ours too, behind the last that timm names, on the path to the output"
        elif places.grid(stage) == places.grid(following):
            place = "ours too: blocks in front of the one that timm names at the same resolution"
        else:
            place = "ours too, on the path between two that timm names, at another resolution"
        found[stage.path] = place
    return by_reason(found)


def compare_diffusers(model: Any, places: Places) -> tuple[str, tuple[str, ...]]:
    """Compares classes of stages with those that the class names."""
    named = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None)
    if not named:
        return "not named", ()
    found: dict[str, set[str]] = {}
    for name in sorted(named):
        found[name] = {places.of(path) for path in places.instances(name)} or {UNKNOWN}
        if PART in found[name]:
            found[name] = found[name] - {PART} | {SAME}
    reasons: tuple[str, ...] = ()
    for name, where in found.items():
        # Some of a class may be blocks and others none: text refiners of the same class, say.
        some = ", some of them" if len(where) > 1 else ""
        reasons += tuple(
            f"`{name}`{some}: {place}" for place in sorted(where) if place not in NO_DIFFERENCE
        )
    classes: dict[str, list[str]] = {}
    for i in places.stage_of:
        path = places.calls[i].path
        classes.setdefault(type(places.modules[path]).__name__, []).append(path)
    more = {name: paths for name, paths in classes.items() if name not in named}
    met = [where for where in found.values() if where != {UNKNOWN}]
    if met and all(where & {INSIDE, ENDS, HOLDS} for where in met):
        holders = listed(sorted(more))
        return "finer or coarser", (*reasons, f"{holders}: ours, the larger blocks around them")
    for name, paths in more.items():
        share = places.share(paths)
        reasons += (
            f"`{name}`: ours too: on the path like the named ones, {share:.1%} of the MACs",
        )
    if any(SAME not in where for where in met):
        return "differs", reasons
    return ("the same and more" if more else "the same"), reasons


def judge(specimen: Specimen) -> Row:
    """Compares one model."""
    model: nn.Module = specimen.make()
    try:
        adapter = registry.resolve(model)
        seen = probe(model, specimen.inputs(4), adapter)
        plan = plan_of(model, seen, adapter)
    except ExitKitError as error:
        said = " ".join(str(error).split()).split(". ")[0]
        return Row(specimen.name, "refused", (f"{type(error).__name__}: {said}",))
    compare = compare_timm if specimen.package == "timm" else compare_diffusers
    return Row(specimen.name, *compare(model, Places(model, plan, seen)))


def page(rows: list[Row]) -> str:
    """The page: totals, a table of differences, and the models that name nothing."""
    about = (__doc__ or "").split("\n\n")[2].strip()
    lines = ["# Agreement with the libraries' own lists", "", about, ""]
    lines += [
        "Every module that a library names falls under one of these: it "
        + SAME
        + "; or it differs,",
        "and the row says how. `finer or coarser` means that all that is named holds our stages or",
        "lies in one; `differs` that something named is neither. A named class that " + UNKNOWN,
        "is no difference.",
        "",
        "| library | models | " + " | ".join(WORDS) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in WORDS) + " |",
    ]
    for package in ("diffusers", "timm"):
        mine = [row.word for row in rows if row.name.startswith(package)]
        counts = Counter(mine)
        cells = " | ".join(str(counts[word]) for word in WORDS)
        lines.append(f"| {package} | {len(mine)} | {cells} |")
    lines += ["", "| model | agreement | reasons |", "| --- | --- | --- |"]
    lines += [
        f"| {row.name} | {row.word} | {'; '.join(row.reasons)} |" for row in rows if row.reasons
    ]
    silent = [row.name.split(".", 1)[1] for row in rows if row.word == "not named"]
    lines += ["", f"No blocks are named by {len(silent)} models of diffusers: {', '.join(silent)}."]
    return "\n".join(lines) + "\n"


def main(parts: list[str]) -> None:
    """Writes the page, or prints the rows of some models."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, specimen in specimens().items():
        if specimen.package not in ("timm", "diffusers"):
            continue
        if parts and not any(part in name for part in parts):
            continue
        rows.append(judge(specimen))
        print(name, rows[-1].word, *rows[-1].reasons, sep="\n    ", flush=True)
    if not parts:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
