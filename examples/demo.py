"""The tour: wrap a model, fit a tiny head without data, choose a budget, compare, write a report.

    python examples/demo.py                 # about five minutes on two cores
    python examples/demo.py --quick         # half a minute, only shows that everything runs

A small U-ViT that was trained on digits (examples/reproduction/models) is wrapped with the preset `carried`:
a step either runs the whole network, or leaves after the first block and completes the answer from
what the last full steps left behind. How that ends is compared with fewer steps, and with the heads of the
article (`paper`: trained together with the network, which draws other digits by then), on the same seeds.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.reproduction.models.digits import load_digits
from examples.reproduction.models.models import (
    load_classifier,
    load_exits,
    load_features,
    load_uvit,
    scheduler,
)

SHAPE = (1, 32, 32)
BUDGET = 0.5


def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])


def rival(sampler: ek.Sampler, seeds: int) -> ek.Entry:
    """The article's own heads, trained with the network on the digits, calibrated to the same budget."""
    model = load_exits("paper")
    found = ek.calibrate(model, sampler, budget=BUDGET, seeds=seeds)
    return ek.Entry("paper", model, found.policy, static="fixed exit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    args = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    quick = args.quick
    steps, seeds = (6, 4) if quick else (50, 256)
    started = time.perf_counter()

    # %% Look before cutting: nothing is changed here.
    backbone = load_uvit()
    print(ek.inspect(backbone, example_inputs=example_inputs()))

    # %% One call. The backbone's weights stay as they are; only the heads are trained.
    model = ek.wrap(backbone, "carried", example_inputs=example_inputs())
    model.print_trainable_parameters()

    # %% No data: the full model runs its own trajectories, and its own output is the target.
    ddim = DDIMScheduler.from_config(scheduler().config)
    sampler = ek.Sampler(ddim, SHAPE, steps, batch_size=4 if quick else 64)
    # The correction is solved for in closed form; the steps train the uncertainty head.
    rollouts = ek.Rollouts(model, sampler, seeds=range(1_000, 1_004 if quick else 1_064))
    ek.fit(model, rollouts, steps=10 if quick else 120)

    # %% A budget in, a policy out.
    found = ek.calibrate(
        model,
        sampler,
        budget=BUDGET,
        seeds=4 if quick else 16,
        policy="threshold" if quick else "best",
    )
    model.policy = found.policy
    print(str(found).splitlines()[0])

    # %% Generate as with any model. Each sample owns its noise and its decisions.
    sample = ek.generate(model, sampler, seeds=4 if quick else 16)
    print(sample.trace)

    # %% Compare at half cost, on seeds that nothing was fitted to.
    comparison = ek.compare(
        [ek.Entry("carried", model, model.policy), rival(sampler, 4 if quick else 8)],
        sampler,
        seeds=seeds,
        metrics=ek.Metrics(load_features(), load_digits().held_out_images, load_classifier()),
        baseline=load_uvit(),
    )
    comparison = replace(comparison, title="Half the network, the same digits")
    print(f"\n{comparison}\n")
    report = ek.write_report(comparison, args.out / "report.html", pictures=args.out)
    comparison.to_json(args.out / "comparison.json")
    print(f"report:  {report.resolve()}")
    for figure in sorted(args.out.glob("*.png")):
        print(f"figure:  {figure.resolve()}")

    # %% And back: the same object, as it was.
    assert ek.unwrap(model) is backbone
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
