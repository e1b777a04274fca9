"""Which third-party backbones keep every promise: `make coverage` writes docs/coverage.md.

Every model runs in a process of its own with a time limit, so one that hangs or crashes is a row
of the table like any other. No path is given by hand: what is found is what `wrap` finds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from exitkit.errors import ExitKitError
from exitkit.testing import ContractError, check_backbone
from exitkit.wrapping import inspect
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
        exits: Number of usable exits.
        mechanism: How exits make their output.
        means: What found the blocks.
        blocks: Paths of the stages, shortened.
        message: Why it does not hold.
        seconds: Wall clock of inspection and check.
    """

    name: str
    result: str
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
        exits=sum(b.usable for b in plan.boundaries),
        mechanism=plan.mechanism,
        means="; ".join(plan.views),
        blocks=", ".join(s.path for s in plan.stages),
        message=message,
        seconds=seconds,
    )


def in_own_process(name: str) -> Verdict:
    """Runs the contract over one model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(name, "crashed", message=f"no answer within {LIMIT:.0f} s", seconds=LIMIT)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return Verdict(**json.loads(line))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return Verdict(name, "crashed", message=last)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all if none is given")
    parser.add_argument("--one", help="judge one model here and print a line of JSON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(judge(args.one))))
        return
    names = [n for n in specimens() if not args.names or any(part in n for part in args.names)]
    with ThreadPoolExecutor(args.jobs) as pool:
        verdicts = []
        for verdict in pool.map(in_own_process, names):
            verdicts.append(verdict)
            print(
                f"{verdict.result:8} {verdict.seconds:6.1f} s  {verdict.exits:3} exits  "
                f"{verdict.name}  {verdict.message[:300]}",
                flush=True,
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(v) for v in verdicts], indent=1) + "\n")
    held = sum(v.result == "holds" for v in verdicts)
    print(f"{held} of {len(verdicts)} hold; written to {args.out}")


if __name__ == "__main__":
    main()
