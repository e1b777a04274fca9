"""What a short fit of the article's exits gains from rates of their own and a start of their own.

    python -m benchmarks.heads_first [uvit dit unet] [--out benchmarks/results/heads_first.md]

The `paper` preset is fitted three ways with the same number of optimiser steps, and its squared errors
on held-out digits are printed, exit by exit: one rate for all (the article's 2e-4), a larger one for
the heads, and in a third of the steps the heads alone before.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import exitkit as ek
from examples.reproduction.models import suites
from examples.reproduction.models.digits import load_digits
from exitkit.benchmark import Suite
from exitkit.policies import FixedExit, NeverExit

ROWS = 128
WAYS: dict[str, dict[str, Any]] = {
    "one rate, 2e-4": {"head_lr": 2e-4, "uncertainty_lr": 2e-3},
    "heads 3e-2": {"head_lr": 3e-2, "uncertainty_lr": 3e-3},
    "heads 3e-2, first alone": {"head_lr": 3e-2, "uncertainty_lr": 3e-3, "head_steps": 1},
}


def errors(model: ek.ExitModel, suite: Suite) -> list[float]:
    """Mean squared error of each exit and of the end, at timesteps spread over all of them."""
    digits = load_digits()
    clean, labels = digits.held_out_images[:ROWS], digits.held_out_labels[:ROWS]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(5, 995, ROWS).long()
    level = suite.sampler.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    given = suite.sampler.conditions
    named = given(labels) if callable(given) else {}
    found = []
    for policy in [*(FixedExit(k) for k in range(1, len(model.exits) + 1)), NeverExit()]:
        model.policy = policy
        with torch.inference_mode():
            out: Any = model(noisy, timestep=t, **named) if named else model(noisy, t)
        predicted: Tensor = out if isinstance(out, Tensor) else out.sample
        found.append(float((predicted - noise).square().mean()))
    return found


def fitted(suite: Suite, steps: int, seed: int, way: dict[str, Any]) -> tuple[list[float], float]:
    """Errors and seconds of one way."""
    torch.manual_seed(seed)
    model = ek.wrap(suite.backbone(), "paper", example_inputs=suite.example_inputs)
    assert isinstance(model, ek.ExitModel)
    alone = steps // 3 if way.get("head_steps") else 0
    start = time.perf_counter()
    with sdpa_kernel(SDPBackend.MATH):
        ek.fit(
            model,
            suite.loader(32, seed),
            suite.task,
            steps=steps - alone,
            seed=seed,
            optimizer=ek.Optimizer(
                **{"lr": 2e-4, "matrices": None, "schedule": "cosine", "warmup": 20},
                **{**way, "head_steps": alone},
            ),
            precision="bf16",
            progress=False,
        )
    seconds = time.perf_counter() - start
    return errors(model, suite), seconds


def main() -> None:
    """Prints one table for each suite."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads_first", description=__doc__.split("\n")[0]
    )
    parser.add_argument("suites", nargs="*", default=["uvit", "dit", "unet"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    lines = [
        "# Heads first",
        "",
        f"`python -m benchmarks.heads_first {' '.join(args.suites)} --steps {args.steps} --seed "
        f"{args.seed}`, batch 32.",
    ]
    for name in args.suites:
        suite: Suite = getattr(suites, name)()
        bare = ek.wrap(suite.backbone(), "paper", example_inputs=suite.example_inputs)
        assert isinstance(bare, ek.ExitModel)
        count = len(bare.exits)
        lines += ["", f"{name}, before: full {errors(bare, suite)[-1]:.4f}", ""]
        lines += [f"| fit | {' | '.join(f'exit {k + 1}' for k in range(count))} | full | seconds |"]
        lines += ["|---" * (count + 3) + "|"]
        for label, way in WAYS.items():
            found, seconds = fitted(suite, args.steps, args.seed, way)
            lines += [f"| {label} | {' | '.join(f'{e:.4f}' for e in found)} | {seconds:.0f} |"]
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
