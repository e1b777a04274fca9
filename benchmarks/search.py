"""What one search along a path finds, and in how many runs: `python -m benchmarks.search`.

The reference U-ViT with the shipped heads of `relative`, and with carried exits that were never fitted;
eight trajectories of nine DDIM steps. Beside every row stands what a scan over the whole path finds: all
settings, or 100 positions of a continuous one. `benchmarks/results/search.md` holds the table.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.reproduction.models.models import load_exits, load_uvit, scheduler
from exitkit.calibration.paths import paths_for
from exitkit.calibration.search import Target, search
from exitkit.calibration.workload import GenerationWorkload, Workload
from exitkit.errors import CalibrationError
from exitkit.policies import CALM, Measurement, UncertaintyThreshold
from exitkit.sampling.sampler import Sampler

SHAPE, STEPS, SEEDS = (1, 32, 32), 9, range(10_000, 10_008)
PLAIN = UncertaintyThreshold(1.0)
CASES = [
    ("static", "static", "relative", Target(0.6)),
    ("static", "static", "relative", Target(None, 0.05)),
    ("ase", "ase", "relative", Target(0.6)),
    ("ase", "ase", "relative", Target(None, 0.05)),
    ("calm cosine", CALM("cosine", 0.9), "relative", Target(0.6)),
    ("calm cosine", CALM("cosine", 0.9), "relative", Target(None, 0.05)),
    ("threshold", PLAIN, "relative", Target(0.6)),
    ("threshold", PLAIN, "relative", Target(None, 0.3)),
    ("carried interval", "interval", "carried", Target(0.6)),
    ("carried interval", "interval", "carried", Target(None, 0.05)),
    ("schedule", "schedule", "relative", Target(0.6)),
    ("schedule", "schedule", "relative", Target(None, 0.3)),
]


def workload(exits: str, sampler: Sampler) -> GenerationWorkload:
    if exits == "carried":
        inputs = (torch.zeros(2, *SHAPE), torch.tensor([500.0, 100.0]))
        model = ek.wrap(load_uvit(), "carried", example_inputs=inputs)
        model.heads.mark_fitted()
        return GenerationWorkload(model, sampler, SEEDS)
    return GenerationWorkload(load_exits(exits), sampler, SEEDS, PLAIN)


def scanned(workload: Workload, asked: object, target: Target) -> Measurement | None:
    path = paths_for(asked, workload, target.budget)[0]  # type: ignore[arg-type]
    count = path.settings or 100
    measured = [workload.measure(path.at(i / max(1, count - 1))) for i in range(count)]
    fitting = {i: m for i, m in enumerate(measured) if target.fits(m, path.tolerance)}
    return fitting[target.best(fitting)] if fitting else None  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-scan", action="store_true", help="leave out the scan over the path")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sampler = Sampler(DDIMScheduler.from_config(scheduler().config), SHAPE, STEPS)
    print("| family | target | cost | error | runs | seconds | scan: cost | error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    everything = {exits: workload(exits, sampler) for exits in ("relative", "carried")}
    for name, asked, exits, target in CASES:
        fresh = workload(exits, sampler)
        started = time.perf_counter()
        try:
            found = search(paths_for(asked, fresh, target.budget)[0], fresh, target)
            told = f"{found.cost:.4f} | {found.error:.5f}"
        except CalibrationError:
            told = "out of reach | -"
        seconds = time.perf_counter() - started
        best = None if args.no_scan else scanned(everything[exits], asked, target)
        scan = "- | -" if best is None else f"{best.cost:.4f} | {best.error:.5f}"
        goal = f"budget {target.budget}" if target.budget else f"error {target.max_error}"
        runs = len(fresh.history)
        print(f"| {name} | {goal} | {told} | {runs} | {seconds:.1f} | {scan} |", flush=True)


if __name__ == "__main__":
    main()
