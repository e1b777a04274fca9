"""Which third-party backbones keep every promise, by preset: `make coverage` writes docs/coverage.md.

Every model runs under every preset in a process of its own with a time limit, so one that hangs or
crashes is a cell of the table like any other. No path is given by hand: what is found is what `wrap`
finds. With `--out` what was judged before is read back, and only the rest is run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from exitkit.errors import ExitKitError
from exitkit.pipelines.verbs import inspect
from exitkit.surgery.inputs import is_time
from exitkit.testing import ContractError, check_backbone
from tests.zoo import specimens

ROWS = 4
ATOL = 1e-4
LIMIT = 300.0
PRESETS = ("relative", "carried", "paper")


@dataclass(frozen=True)
class Verdict:
    """One model under one preset.

    Attributes:
        name: Package and class.
        preset: The preset.
        result: "holds", "refused" (an exitkit error), "broken" (a promise), or "crashed".
        denoises: Whether it has a timestep; by the arguments' names where `inspect` refuses it.
        stages: Number of stages.
        exits: Number of usable exits.
        mechanism: How exits make their output.
        means: What found the blocks.
        message: Why it does not hold.
        seconds: Wall clock of inspection and check.
    """

    name: str
    preset: str
    result: str
    denoises: bool = True
    stages: int = 0
    exits: int = 0
    mechanism: str = ""
    means: str = ""
    message: str = ""
    seconds: float = 0.0


def judge(name: str, preset: str) -> Verdict:
    """Runs the contract over one model, in this process."""
    torch.set_num_threads(1)
    specimen = specimens()[name]
    start = time.perf_counter()
    model, inputs = specimen.make(), specimen.inputs(ROWS)
    plan = None
    try:
        plan = inspect(model, example_inputs=inputs)
        check_backbone(model, inputs, config=preset, atol=ATOL)
        result, message = "holds", ""
    except ContractError as error:
        result, message = "broken", str(error)
    except ExitKitError as error:
        result, message = "refused", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if plan is None:
        timed = any(is_time(argument) for argument in inputs.kwargs)
        return Verdict(name, preset, result, timed, message=message, seconds=seconds)
    return Verdict(
        name,
        preset,
        result,
        denoises=plan.timestep is not None,
        stages=plan.num_stages,
        exits=sum(b.usable for b in plan.boundaries),
        mechanism=plan.mechanism,
        means="dry runs, torch.fx agrees" if "traces" in plan.views[1] else "dry runs",
        message=message,
        seconds=seconds,
    )


def _judge_into(end: Connection, name: str, preset: str) -> None:
    try:
        end.send(judge(name, preset))
    except Exception as error:
        end.send(Verdict(name, preset, "crashed", message=f"{type(error).__name__}: {error}"))


def in_own_process(name: str, preset: str) -> Verdict:
    """Runs the contract over one model in a forked process, so that it can crash or hang."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_judge_into, args=(theirs, name, preset))
    process.start()
    theirs.close()
    try:
        if not mine.poll(LIMIT):
            process.kill()
            return Verdict(name, preset, "crashed", message=f"no answer within {LIMIT:.0f} s")
        verdict: Verdict = mine.recv()
    except EOFError:
        verdict = Verdict(name, preset, "crashed", message="the process ended without an answer")
    finally:
        process.join()
    return verdict


def page(verdicts: Sequence[Verdict], models_in_all: int) -> str:
    """The tables as a page of Markdown."""
    presets = list(dict.fromkeys(v.preset for v in verdicts))
    models: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        models.setdefault(verdict.name, {})[verdict.preset] = verdict
    lines = [
        "# Coverage",
        "",
        "`make coverage` runs `exitkit.testing.check_backbone` over every third-party model below, once a",
        "preset: shrunk, with random perturbed weights, and no path given by hand. A cell says `holds` if",
        "every promise of the contract was kept, and `refused` is an error at wrap time that says why.",
        "Models without a timestep, classifiers for the most part, are judged within a trajectory, as all",
        "others; outside of one nothing is carried, and `carried` exits leave at no step.",
        "",
        *_unfinished(verdicts, models_in_all),
        f"| package | models | {' | '.join(presets)} | broken or crashed |",
        f"| --- | ---: | {' | '.join('---:' for _ in presets)} | ---: |",
    ]
    groups: dict[str, list[dict[str, Verdict]]] = {}
    for name, cells in models.items():
        groups.setdefault(name.split(".")[0], []).append(cells)
    groups["all that denoise"] = [c for c in models.values() if any(v.denoises for v in c.values())]
    for package, rows in groups.items():
        shown = []
        for preset in presets:
            judged = [row[preset] for row in rows if preset in row]
            held = sum(v.result == "holds" for v in judged)
            shown.append(f"{held} of {len(judged)} ({held / len(judged):.1%})" if judged else "-")
        wrong = sum(v.result in ("broken", "crashed") for row in rows for v in row.values())
        lines.append(f"| {package} | {len(rows)} | {' | '.join(shown)} | {wrong} |")
    lines += [
        "",
        f"| model | found by | stages | exits | mechanism | {' | '.join(presets)} | seconds |",
    ]
    lines += [f"| --- | --- | ---: | ---: | --- | {' | '.join('---' for _ in presets)} | ---: |"]
    for name, cells in models.items():
        one = next(iter(cells.values()))
        results = " | ".join(cells[p].result if p in cells else "-" for p in presets)
        seconds = sum(v.seconds for v in cells.values())
        lines.append(
            f"| {name} | {one.means} | {one.stages} | {one.exits} | {one.mechanism} | {results} "
            f"| {seconds:.1f} |"
        )
    failed = [v for v in verdicts if v.result != "holds"]
    if failed:
        lines += ["", "## What does not hold", ""]
        lines += [
            f"- **{v.name}** under `{v.preset}`, {v.result}: {' '.join(v.message.split())[:600]}"
            for v in failed
        ]
    return "\n".join(lines) + "\n"


def _unfinished(verdicts: Sequence[Verdict], models_in_all: int) -> list[str]:
    """What the page does not show yet, in words."""
    lines = []
    for preset in PRESETS:
        judged = sum(v.preset == preset for v in verdicts)
        if judged < models_in_all:
            lines.append(f"`{preset}`: {judged} of {models_in_all} models judged so far.")
    return [*lines, ""] if lines else []


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all if none is given")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="JSON lines: what is in it is not judged again")
    parser.add_argument("--page", type=Path, help="write the tables, docs/coverage.md")
    parser.add_argument("--known", action="store_true", help="judge nothing, show what is in --out")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = [n for n in specimens() if not args.names or any(part in n for part in args.names)]
    for module in ("diffusers", "timm"):  # imported once: every model's process starts from here
        importlib.import_module(module)
    torch.set_num_threads(1)
    known: dict[tuple[str, str], Verdict] = {}
    if args.out and args.out.is_file():
        read = (Verdict(**json.loads(line)) for line in args.out.read_text().splitlines())
        known = {(v.name, v.preset): v for v in read}

    def verdict_of(pair: tuple[str, str]) -> Verdict:
        verdict = known.get(pair) or in_own_process(*pair)
        if args.out and pair not in known:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
        print(
            f"{verdict.result:8} {verdict.seconds:6.1f} s  {verdict.exits:3} exits  {verdict.preset:8} "
            f"{verdict.name}  {' '.join(verdict.message.split())[:300]}",
            flush=True,
        )
        return verdict

    with ThreadPoolExecutor(args.jobs) as pool:
        pairs = [(name, preset) for preset in args.presets for name in names]
        pairs = [pair for pair in pairs if pair in known or not args.known]
        verdicts = list(pool.map(verdict_of, pairs))
    if args.page:
        args.page.write_text(page(verdicts, len(names)))
    for preset in args.presets:
        mine = [v for v in verdicts if v.preset == preset]
        print(f"{preset}: {sum(v.result == 'holds' for v in mine)} of {len(mine)} hold")
    sys.exit(any(v.result in ("broken", "crashed") for v in verdicts))


if __name__ == "__main__":
    main()
