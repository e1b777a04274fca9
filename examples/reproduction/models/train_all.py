"""Makes all trained exits anew: `python -m examples.reproduction.models.train_all --workers 2`.

Each training is a process of its own with one thread. What is finished is not run again, what was stopped
goes on. `--keep` then copies the logs, and the weights of the main runs, to where the demo, the tests and
the tables look for them; `training_page` makes a page of the logs.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .checkpoint import HERE
from .trainings import RUNS, Run

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def train(run: Run, folder: Path, device: str) -> bool:
    """Runs one training to its end.

    Args:
        run: The training.
        folder: Folder of all trainings.
        device: Where it is trained.

    Returns:
        Whether it ended well; what it printed is in `output.txt` of its folder.
    """
    place = folder / run.name
    if (place / "final").is_dir():
        return True
    place.mkdir(parents=True, exist_ok=True)
    words = [run.network, run.preset, "--steps", str(run.steps), *run.options]
    command = [sys.executable, "-m", "examples.reproduction.models.train_exits", *words]
    with (place / "output.txt").open("a") as output:
        ended = subprocess.run(
            [*command, "--device", device, "--folder", str(place)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
            check=False,
        )
    print(f"{run.name}: {'done' if ended.returncode == 0 else 'FAILED'}", flush=True)
    return ended.returncode == 0


def keep(run: Run, folder: Path) -> None:
    """Copies the log of a finished training into the repository, and the weights of a main one."""
    place, weights = folder / run.name, HERE / "weights" / run.name
    shutil.copyfile(place / "log.txt", HERE / "logs" / f"{run.name}.log")
    if run.group == "main":
        shutil.rmtree(weights, ignore_errors=True)
        shutil.copytree(place / "final", weights)


def main() -> int:
    """Runs what the command line names; returns how many trainings failed."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduction.models.train_all",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument(
        "names", nargs="*", default=["*"], help="names or wildcards, such as 'uvit_*'"
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/exits"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="copy logs, and weights of main runs")
    args = parser.parse_args()
    runs = [run for run in RUNS if any(fnmatch.fnmatchcase(run.name, n) for n in args.names)]
    with ThreadPoolExecutor(args.workers) as pool:
        ended = list(pool.map(lambda run: train(run, args.folder, args.device), runs))
    for run, well in zip(runs, ended, strict=True):
        if well and args.keep:
            keep(run, args.folder)
    return ended.count(False)


if __name__ == "__main__":
    sys.exit(main())
