"""Completion against fewer steps under DPM-Solver++, on the reference networks.

    python -m benchmarks.completion --out runs/completion.jsonl --page benchmarks/results/completion.md

At E evaluations, completion runs E of 2 E steps of DPM-Solver++ 2M in full, where `calibrate(budget=.5)` has
them; `wrap`, `fit` and `calibrate` get no further argument. Beside it stand E steps of the same solver, E of
UniPC, and the forecast alone (noise as a line in time at skipped steps, nothing solved). Distance: root mean
square difference of samples, in [-1, 1], to the converged run (200 steps of DPM-Solver++) of the same seed.
Ratios are paired, with 95 % bootstrap intervals. Seeds count from 100,000; fits and calibrations use others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

import exitkit as ek
from examples.reproduction.models import suites
from examples.reproduction.models.models import scheduler
from exitkit.benchmark import Suite
from exitkit.evaluation.intervals import distance_ratio
from exitkit.policies import StepSchedule
from exitkit.sampling.distance import paired_distance

NETWORKS = ("uvit", "dit", "pixart", "unet")
EVALUATIONS = (10, 15, 20, 25)
FIRST = 100_000
CONVERGED = 200


def solver(kind: Any) -> Any:
    """A solver with the noise schedule of the training; samples are pictures, so nothing is clipped."""
    return kind.from_config(scheduler().config)


def rows(network: str, evaluations: list[int], seeds: int) -> Iterator[dict[str, Any]]:
    """Distances of one network, a record a row."""
    suite = getattr(suites, network)()
    backbone = suite.backbone()
    sampler = replace(suite.sampler, scheduler=solver(DPMSolverMultistepScheduler))
    chosen = range(FIRST, FIRST + seeds)

    converged = sampler.with_steps(CONVERGED).run(backbone, chosen).samples
    for count in evaluations:
        for row, made, facts in drawn(suite, backbone, sampler, count, chosen):
            far = paired_distance(made, converged).tolist()
            name = {"network": network, "evaluations": count, "row": row}
            yield {**name, "distances": far, **facts}


def drawn(
    suite: Suite, backbone: nn.Module, sampler: ek.Sampler, count: int, seeds: range
) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """Samples of every row at a number of evaluations, and what is known of it."""
    plain = sampler.with_steps(count)
    yield "fewer steps", plain.run(backbone, seeds).samples, {}
    other = replace(plain, scheduler=solver(UniPCMultistepScheduler))
    yield "UniPC", other.run(backbone, seeds).samples, {}
    finer = sampler.with_steps(2 * count)
    model = ek.wrap(backbone, "completion", example_inputs=suite.example_inputs)
    started = time.perf_counter()
    ek.fit(model, finer, progress=False)
    fitted = time.perf_counter() - started
    model.policy = ek.calibrate(model, finer, budget=0.5, progress=False).policy
    calibrated = time.perf_counter() - started - fitted
    made = finer.run(model, seeds)
    assert made.trace is not None and model.heads.completion is not None
    facts = {"cost": made.trace.cost, "fit": fitted, "calibrate": calibrated}
    yield "completion", made.samples, facts
    model.policy = StepSchedule.completing(2 * count, count)
    model.heads.completion.scalars.values.zero_()
    yield "forecast alone", finer.run(model, seeds).samples, {}
    ek.unwrap(model)


def page(records: list[dict[str, Any]]) -> str:
    """The table: distances, and ratios to every row."""
    title, command, about = (__doc__ or "").split("\n\n", 2)
    names = ["fewer steps", "UniPC", "forecast alone", "completion"]
    cells: dict[tuple[str, int], dict[str, Tensor]] = {}
    facts: dict[tuple[str, int], dict[str, Any]] = {}
    for found in records:
        key = found["network"], found["evaluations"]
        cells.setdefault(key, {})[found["row"]] = torch.tensor(found["distances"])
        if found["row"] == "completion":
            facts[key] = found
    seeds = sorted({len(d) for rows in cells.values() for d in rows.values()})
    lines = [f"# {title}", "", f"`{command.strip()}`", "", about.strip(), ""]
    lines += [f"Seeds: {', '.join(map(str, seeds))}.", ""]
    lines += [
        f"| network | E | {' | '.join(names)} | ratio to fewer steps | to UniPC | to the forecast "
        "| nearer than fewer steps | median ratio | cost | fit, s |",
        f"| --- | ---: |{' ---: |' * (len(names) + 7)}",
    ]
    done = [key for key, found in cells.items() if len(found) == len(names)]
    for key in done:
        found = cells[key]
        mine = found["completion"]
        shown = [f"{found[name].mean():.4f}" for name in names]
        ratios = [distance_ratio(mine, found[name]) for name in names[:3]]
        said = [f"**{r.mean:.2f}** [{r.low:.2f}, {r.high:.2f}]" for r in ratios]
        fact = facts[key]
        pairs = mine / found["fewer steps"]
        said += [f"{int((pairs < 1).sum())} of {len(pairs)}", f"{pairs.median():.2f}"]
        line = [key[0], str(key[1]), *shown, *said, f"{fact['cost']:.3f}", f"{fact['fit']:.0f}"]
        lines.append(f"| {' | '.join(line)} |")
    left = [f"{n} {e}" for n in NETWORKS for e in EVALUATIONS if (n, e) not in done]
    lines += ["", "`fit` is seconds on one core, other work beside it."]
    lines += ["", f"Not run: {', '.join(left)}."] if left else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is missing in `--out`, prints the page, and writes it with `--page`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completion")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON lines: what is in it is not run again")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    known: list[dict[str, Any]] = []
    if args.out and args.out.is_file():
        known = [json.loads(line) for line in args.out.read_text().splitlines()]
    for network in args.networks:
        done = {
            r["evaluations"]
            for r in known
            if (r["network"], r["row"]) == (network, "forecast alone")
        }
        left = [count for count in args.evaluations if count not in done]
        for found in rows(network, left, args.seeds) if left else ():
            known.append(found)
            print(
                network,
                found["evaluations"],
                found["row"],
                f"{sum(found['distances']) / args.seeds:.4f}",
                flush=True,
            )
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    text = page(known)
    print(text)
    if args.page:
        args.page.write_text(text)


if __name__ == "__main__":
    main()
