"""How the carried rest is best corrected: not at all, by a perceptron, or by maps solved for.

    python -m benchmarks.carried                # all rows, 64 seeds, some minutes on two cores
    python -m benchmarks.carried --seeds 8 --train-steps 20

The reference U-ViT with DDIM 50. Distance: root mean square difference of the final images, in
[-1, 1], to the full run from the same seed; mean over seeds that nothing was fitted to. Cost:
executed MACs with heads. All carried rows share the 64 self-made trajectories that heads are fitted
on, and follow the same beats: F is a full step, C a carried one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.reproduction.models.models import load_uvit, scheduler
from exitkit.policies import FULL, StepSchedule
from exitkit.training.carried import CarriedLoss
from exitkit.training.solving import solve_maps

RESULTS = Path(__file__).parent / "results"
SHAPE, STEPS = (1, 32, 32), 50
BEATS = {"FC": "CF", "FCFCC": "CFCCF", "FCC": "CCF"}


def schedule(beat: str) -> StepSchedule:
    """Two full steps, then the beat over and over."""
    pattern = ("FF" + beat * STEPS)[:STEPS]
    return StepSchedule(tuple(FULL if c == "F" else 1 for c in pattern))


def distance(images: torch.Tensor, full: torch.Tensor) -> tuple[float, float]:
    each = (images - full).flatten(1).square().mean(dim=1).sqrt()
    return float(each.mean()), float(1.96 * each.std() / len(each) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--train-steps", type=int, default=1000)
    args = parser.parse_args()
    seeds = list(range(20_000, 20_000 + args.seeds))
    ddim = DDIMScheduler.from_config(scheduler().config)
    bare = load_uvit()
    lines = ["| what | fit, s | cost | distance (95 %) |", "| --- | --- | --- | --- |"]

    def row(name: str, seconds: float, cost: float, images: torch.Tensor) -> None:
        mean, half = distance(images, full)
        lines.append(f"| {name} | {seconds:.0f} | {cost:.3f} | {mean:.4f} ± {half:.4f} |")
        print(lines[-1], flush=True)

    print("\n".join(lines))
    sampler = ek.Sampler(ddim, SHAPE, STEPS)
    full = ek.generate(bare, sampler, seeds).samples
    for steps in (30, 25, 20):
        images = ek.generate(bare, sampler.with_steps(steps), seeds).samples
        row(f"{steps} DDIM steps", 0, steps / STEPS, images)
    example = (torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0]))
    for name, knots in (("plain reuse", -1), ("perceptron", 0), ("maps", STEPS)):
        output = {"kind": "carried", "knots": max(knots, 0)}
        model = ek.wrap(load_uvit(), "carried", example_inputs=example, output=output)
        model.heads.mark_fitted()
        rollouts = ek.Rollouts(model, sampler, seeds=64)
        rollouts[0]  # the run is the same for all and not part of the fit
        start = time.perf_counter()
        if knots > 0:
            solve_maps(model, rollouts, CarriedLoss().gap_steps, CarriedLoss().previous_gap_steps)
        elif knots == 0:
            cosine = ek.Optimizer(lr=1e-3, schedule="cosine")
            ek.fit(model, rollouts, steps=args.train_steps, optimizer=cosine, progress=False)
        seconds = time.perf_counter() - start
        for beat, letters in BEATS.items():
            model.policy = schedule(letters)
            sample = ek.generate(model, sampler, seeds)
            row(f"{name}, {beat}", seconds, model.trace.cost, sample.samples)
    RESULTS.mkdir(exist_ok=True)
    described = f"`python -m benchmarks.carried`, {args.seeds} seeds, DDIM {STEPS}.\n\n"
    (RESULTS / "carried.md").write_text(described + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
