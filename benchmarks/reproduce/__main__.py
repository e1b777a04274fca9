"""Runs all jobs, or those that are named; what is done is not done again."""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import torch

from benchmarks.reproduce.page import write
from benchmarks.reproduce.settings import FULL, SMOKE
from benchmarks.reproduce.tables import JOBS, Bench, run_job


def main(argv: list[str] | None = None) -> None:
    """Runs the jobs that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all if none")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--threads", type=int, default=0, help="torch threads")
    parser.add_argument("--afresh", action="store_true", help="forget what was done")
    args = parser.parse_args(argv)
    unknown = [job for job in args.jobs if job not in JOBS]
    if unknown:
        parser.error(f"no job {', '.join(unknown)}; jobs: {', '.join(JOBS)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.afresh:
        shutil.rmtree(args.work, ignore_errors=True)
    warnings.filterwarnings("ignore", category=UserWarning)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {text}", flush=True)

    bench = Bench(SMOKE if args.smoke else FULL, args.work, say)
    for name in args.jobs or JOBS:
        say(f"{name}: begins")
        command = f"python -m benchmarks.reproduce {name}" + (" --smoke" if args.smoke else "")
        say(f"{name}: {run_job(name, bench, args.out, command)}")
        say(f"page: {write(args.work, args.out, say)}")


if __name__ == "__main__":
    main()
