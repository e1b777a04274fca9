"""Why exits with guidance run away under DPM-Solver++ and not under DDIM.

    python -m benchmarks.clipping [--contenders NAME ...] [--out benchmarks/results/clipping.md]

The guided DiT of `make reproduce`, exits fitted as there. Each contender is calibrated to 0.55 of the
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
from examples.reproduction.models import studies
from examples.reproduction.small.settings import FULL
from exitkit.benchmark import Contender, Study, contenders_for, fitted
from exitkit.benchmark.run import calibrated
from exitkit.evaluation.compare import compare
from exitkit.evaluation.rows import Row
from exitkit.model import ExitModel

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


def ready(study: Study, contender: Contender, work: Path, tied: bool) -> ExitModel:
    """The fitted model, its branches tied or not."""
    with sdpa_kernel(SDPBackend.MATH):
        model = fitted(
            study,
            contender.exits,
            steps=FULL.fit_steps,
            batch_size=FULL.batch,
            folder=work,
            fit_options={"mixed_precision": "bf16", "checkpoint_every": 100},
        )
    if not tied:
        return model
    heads = model.heads.state_dict()
    config = model.exit_config.model_copy(update={"guidance": "tied"})
    other = ek.wrap(ek.unwrap(model), config, example_inputs=study.example_inputs)
    assert isinstance(other, ExitModel)
    other.heads.load_state_dict(heads)
    return other


def measured(study: Study, contender: Contender, model: ExitModel, steps: int, seeds: int) -> Row:
    """The contender's row under the study's sampler."""
    entry, _ = calibrated(
        study, contender, model, FULL.budget, sampler_steps=steps, count=FULL.calibration
    )
    assert study.features is not None and study.reference_images is not None
    result = compare(
        [replace(entry, name=contender.name)],
        scheduler=study.scheduler,
        shape=study.shape,
        baseline=study.backbone(),
        steps=steps,
        seeds=seeds,
        features=study.features(),
        reference_images=study.reference_images(),
        static=False,
        fewer_steps=False,
        diagnostics=False,
        progress=False,
        **{key: value for key, value in study.sampling.items() if key != "diagnostics"},
    )
    return result[contender.name]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clipping", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--contenders", nargs="+", default=["adadiff paper", "berxit"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce/exits"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    study = studies.dit()
    lines = [
        "# Exits and clipped predictions",
        "",
        f"`python -m benchmarks.clipping --contenders {' '.join(map(repr, args.contenders))} "
        f"--steps {args.steps} --seeds {args.seeds}`: guided DiT, {FULL.budget:g} of the MACs.",
        "",
        "| contender | sampler | MACs | distance | Fréchet |",
        "|---|---|---|---|---|",
    ]
    for contender in contenders_for(args.contenders):
        for name, (kind, options, tied) in WAYS.items():
            sampler: Any = kind
            asked = replace(study, scheduler=sampler.from_config(study.scheduler.config, **options))
            model = ready(study, contender, args.work, tied)
            row = measured(asked, contender, model, args.steps, args.seeds)
            d = row.distance
            lines.append(
                f"| {contender.name} | {name} | {row.cost:.3f} | "
                f"{d.mean:.3f} [{d.low:.3f}, {d.high:.3f}] | {row.frechet:,.1f} |"
            )
            print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
