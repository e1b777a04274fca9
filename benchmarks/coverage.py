"""Which third-party backbones keep every promise: `make coverage` writes docs/coverage.md.

Every model runs in a process of its own with a time limit, so one that hangs or crashes is a row
of the table like any other. No path is given by hand: what is found is what `wrap` finds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from exitkit.errors import ExitKitError
from exitkit.pipelines.verbs import inspect
from exitkit.testing import ContractError, check_backbone
from tests.zoo import specimens

ROWS = 4
ATOL = 1e-4
LIMIT = 300.0


@dataclass(frozen=True)
class Verdict:
    """One row of the table.

    Attributes:
        name: Package and class.
        result: "holds", "refused" (an exitkit error), "broken" (a promise), or "crashed".
        stages: Number of stages.
        exits: Number of usable exits.
        mechanism: How exits make their output.
        means: What found the blocks.
        blocks: Paths of the stages.
        message: Why it does not hold.
        seconds: Wall clock of inspection and check.
    """

    name: str
    result: str
    stages: int = 0
    exits: int = 0
    mechanism: str = ""
    means: str = ""
    blocks: str = ""
    message: str = ""
    seconds: float = 0.0


def judge(name: str) -> Verdict:
    """Runs the contract over one model, in this process."""
    torch.set_num_threads(1)
    specimen = specimens()[name]
    start = time.perf_counter()
    model, inputs = specimen.make(), specimen.inputs(ROWS)
    plan = None
    try:
        plan = inspect(model, example_inputs=inputs)
        check_backbone(model, inputs, atol=ATOL)
        result, message = "holds", ""
    except ContractError as error:
        result, message = "broken", str(error)
    except ExitKitError as error:
        result, message = "refused", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if plan is None:
        return Verdict(name, result, message=message, seconds=seconds)
    return Verdict(
        name,
        result,
        stages=plan.num_stages,
        exits=sum(b.usable for b in plan.boundaries),
        mechanism=plan.mechanism,
        means="dry runs, torch.fx agrees" if "traces" in plan.views[1] else "dry runs",
        blocks=", ".join(s.path for s in plan.stages),
        message=message,
        seconds=seconds,
    )


def _judge_into(end: Connection, name: str) -> None:
    try:
        end.send(judge(name))
    except Exception as error:
        end.send(Verdict(name, "crashed", message=f"{type(error).__name__}: {error}"))


def in_own_process(name: str) -> Verdict:
    """Runs the contract over one model in a forked process, so that it can crash or hang."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_judge_into, args=(theirs, name))
    process.start()
    theirs.close()
    try:
        if not mine.poll(LIMIT):
            process.kill()
            return Verdict(name, "crashed", message=f"no answer within {LIMIT:.0f} s")
        verdict: Verdict = mine.recv()
    except EOFError:
        verdict = Verdict(name, "crashed", message="the process ended without an answer")
    finally:
        process.join()
    return verdict


def page(verdicts: list[Verdict]) -> str:
    """The table as a page of Markdown."""
    lines = [
        "# Coverage",
        "",
        "`make coverage` runs `exitkit.testing.check_backbone` over every third-party model below:",
        "shrunk, with random perturbed weights, wrapped with the preset `relative` and no path given",
        "by hand. A row `holds` if every promise of the contract was kept; `refused` is an error at",
        "wrap time that says why.",
        "",
        "| package | models | hold | refused | broken or crashed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    by_package: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_package.setdefault(verdict.name.split(".")[0], []).append(verdict)
    for package, rows in by_package.items():
        counts = Counter(row.result for row in rows)
        rest = len(rows) - counts["holds"] - counts["refused"]
        held = f"{counts['holds']} ({counts['holds'] / len(rows):.1%})"
        lines.append(f"| {package} | {len(rows)} | {held} | {counts['refused']} | {rest} |")
    lines += ["", "| model | found by | stages | exits | mechanism | result | seconds |"]
    lines += ["| --- | --- | ---: | ---: | --- | --- | ---: |"]
    for v in verdicts:
        lines.append(
            f"| {v.name} | {v.means} | {v.stages} | {v.exits} | {v.mechanism} | {v.result} "
            f"| {v.seconds:.1f} |"
        )
    failed = [v for v in verdicts if v.result != "holds"]
    if failed:
        lines += ["", "## What does not hold", ""]
        lines += [
            f"- **{v.name}**, {v.result}: {' '.join(v.message.split())[:600]}" for v in failed
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all if none is given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write a JSON file")
    parser.add_argument("--page", type=Path, help="write the table, docs/coverage.md")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = [n for n in specimens() if not args.names or any(part in n for part in args.names)]
    for module in ("diffusers", "timm"):  # imported once: every model's process starts from here
        importlib.import_module(module)
    torch.set_num_threads(1)
    verdicts = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for verdict in pool.map(in_own_process, names):
            verdicts.append(verdict)
            print(
                f"{verdict.result:8} {verdict.seconds:6.1f} s  {verdict.exits:3} exits  "
                f"{verdict.name}  {' '.join(verdict.message.split())[:300]}",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps([asdict(v) for v in verdicts], indent=1) + "\n")
    if args.page:
        args.page.write_text(page(verdicts))
    held = sum(v.result == "holds" for v in verdicts)
    print(f"{held} of {len(verdicts)} hold")
    sys.exit(any(v.result in ("broken", "crashed") for v in verdicts))


if __name__ == "__main__":
    main()
