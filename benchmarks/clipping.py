"""Why exits with guidance run away under DPM-Solver++ and not under DDIM.

    python -m benchmarks.clipping [--methods NAME ...] [--out benchmarks/results/clipping.md]

The guided DiT of `make reproduce`, exits fitted as there. Each method is calibrated to 0.55 of the
MACs and run under diffusers' DDIM, which clips the image that a step predicts to [-1, 1] unless it is
told not to, and under DPM-Solver++, which does not unless it is told to: of first order (no
extrapolation between steps) and of second, with the two branches of a sample leaving together
(`guidance="tied"`), and with a clip.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel

import exitkit as ek
from examples.reproduction.models import suites
from examples.reproduction.small.settings import FULL
from exitkit.benchmark import Method, Recipe, Suite, calibrated, fitted, methods_for
from exitkit.evaluation.compare import compare
from exitkit.evaluation.rows import Row
from exitkit.model import ExitModel
from exitkit.training import Checkpoints

CLIPPED = {"thresholding": True, "sample_max_value": 1.0}
WAYS: dict[str, tuple[type, dict[str, Any], bool]] = {
    "DDIM": (DDIMScheduler, {}, False),
    "DDIM, unclipped": (DDIMScheduler, {"clip_sample": False}, False),
    "DPM-Solver++, order 2": (DPMSolverMultistepScheduler, {}, False),
    "DPM-Solver++, order 1": (DPMSolverMultistepScheduler, {"solver_order": 1}, False),
    "DPM-Solver++, order 2, tied": (DPMSolverMultistepScheduler, {}, True),
    "DPM-Solver++, order 2, clipped": (DPMSolverMultistepScheduler, CLIPPED, False),
}
"""Sampler, its options, and whether branches leave together."""


def ready(suite: Suite, method: Method, work: Path, tied: bool) -> ExitModel:
    """The fitted model, its branches tied or not."""
    options = {"precision": "bf16", "checkpoints": Checkpoints(every=100)}
    with sdpa_kernel(SDPBackend.MATH):
        model = fitted(suite, method.exits, Recipe(FULL.fit_steps, FULL.batch, fit=options), work)
    if not tied:
        return model
    heads = model.heads.state_dict()
    config = model.exit_config.model_copy(update={"guidance": "tied"})
    other = ek.wrap(ek.unwrap(model), config, example_inputs=suite.example_inputs)
    assert isinstance(other, ExitModel)
    other.heads.load_state_dict(heads)
    return other


def measured(suite: Suite, method: Method, model: ExitModel, seeds: int) -> Row:
    """The method's row under the suite's sampler."""
    entry, _ = calibrated(suite, method, model, FULL.budget, FULL.calibration)
    result = compare(
        [replace(entry, name=method.name, static=False)],
        suite.sampler,
        baseline=suite.backbone(),
        seeds=range(seeds),
        metrics=replace(suite.metrics(), classifier=None),
        fewer_steps=False,
        progress=False,
    )
    return result[method.name]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clipping", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", default=["adadiff paper", "berxit"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce/exits"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    suite = suites.dit()
    lines = [
        "# Exits and clipped predictions",
        "",
        f"`python -m benchmarks.clipping --methods {' '.join(map(repr, args.methods))} "
        f"--steps {args.steps} --seeds {args.seeds}`: guided DiT, {FULL.budget:g} of the MACs.",
        "",
        "| method | sampler | MACs | distance | Fréchet |",
        "|---|---|---|---|---|",
    ]
    for method in methods_for(args.methods):
        for name, (kind, options, tied) in WAYS.items():
            solver: Any = kind
            scheduler = solver.from_config(suite.sampler.scheduler.config, **options)
            sampler = replace(suite.sampler, scheduler=scheduler, steps=args.steps)
            model = ready(suite, method, args.work, tied)
            row = measured(replace(suite, sampler=sampler), method, model, args.seeds)
            d = row.distance
            lines.append(
                f"| {method.name} | {name} | {row.cost:.3f} | "
                f"{d.mean:.3f} [{d.low:.3f}, {d.high:.3f}] | {row.frechet:,.1f} |"
            )
            print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
