"""Runs all jobs, or those that are named; what is done is not done again."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from examples.reproduction.small.page import write
from examples.reproduction.small.settings import FULL, SMOKE
from examples.reproduction.small.tables import GROUPS, JOBS, Bench, run_job


def main(argv: list[str] | None = None) -> None:
    """Runs the jobs that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduction.small", description=__doc__
    )
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all if none")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--threads", type=int, default=0, help="torch threads")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; jobs that share exits stay in one"
    )
    parser.add_argument("--afresh", action="store_true", help="forget what was done")
    args = parser.parse_args(argv)
    unknown = [job for job in args.jobs if job not in JOBS]
    if unknown:
        parser.error(f"no job {', '.join(unknown)}; jobs: {', '.join(JOBS)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.afresh:
        shutil.rmtree(args.work, ignore_errors=True)
    if args.workers > 1:
        _side_by_side(args)
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {text}", flush=True)

    bench = Bench(SMOKE if args.smoke else FULL, args.work, say)
    for name in args.jobs or JOBS:
        say(f"{name}: begins")
        command = f"python -m examples.reproduction.small {name}" + (
            " --smoke" if args.smoke else ""
        )
        say(f"{name}: {run_job(name, bench, args.out, command)}")
        say(f"page: {write(args.work, args.out, say)}")


def _side_by_side(args: argparse.Namespace) -> None:
    """Runs the groups in processes of their own, each with its share of the cores."""
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    shared = [f"--out={args.out}", f"--work={args.work}", f"--threads={threads}"]
    shared += ["--smoke"] if args.smoke else []

    def run(jobs: list[str]) -> int:
        return subprocess.run([sys.executable, "-m", __package__, *jobs, *shared]).returncode

    chosen = args.jobs or list(JOBS)
    groups = [found for group in GROUPS if (found := [job for job in group if job in chosen])]
    with ThreadPoolExecutor(args.workers) as pool:
        failed = [
            ", ".join(group)
            for group, code in zip(groups, pool.map(run, groups), strict=True)
            if code
        ]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}. What is done is kept; run the command again.")


if __name__ == "__main__":
    main()
