"""AdaDiff's exits against rivals trained as long, on the small U-ViT: better, worse, or no difference?

    python -m benchmarks.trained_rivals [--seeds 512] [--write]

All exits were trained by the same recipe (`python -m examples.reproduction.models.train_all`), each with a
network of its own, and committed. Each policy is calibrated to the cost of one fixed exit on seeds from
10,000; the table is on seeds from 100,000, DDIM with 50 steps. The kernel distance (KID) to the real digits
that no training saw stands with its 95 % bootstrap interval; two rows differ where their intervals do not
overlap. The last line is the floor: the distance between two halves of the real digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import exitkit as ek
from examples.reproduction.models.digits import load_digits
from examples.reproduction.models.models import (
    exits_folder,
    load_exits,
    load_features,
    load_uvit,
    scheduler,
)
from exitkit.evaluation.kernel_distance import kernel_distance
from exitkit.evaluation.rows import Interval, Row

PAGE = Path(__file__).parent / "results" / "trained_rivals.md"
SHAPE, STEPS, EXIT = (1, 32, 32), 50, 5
RIVALS = ("paper", "official", "berxit", "calm", "pabee")
FIRST_SEED = 100_000


def entries(sampler: ek.Sampler, calibration: int) -> list[ek.Entry]:
    """Every committed training under its own policy; `compare` adds one exit for all, and none."""
    found = []
    for preset in RIVALS:
        if not exits_folder(preset).is_dir():
            continue
        model = load_exits(preset)
        budget = model.exits[EXIT - 1].cost
        policy = ek.calibrate(model, sampler, budget=budget, seeds=calibration).policy
        found.append(ek.Entry(preset, model, policy, static="fixed exit"))
    return found


def verdict(mine: Interval, other: Interval) -> str:
    """What two intervals of a distance say of the first."""
    if mine.high < other.low:
        return "better"
    return "worse" if mine.low > other.high else "no difference"


def line(row: Row, adadiff: Row) -> str:
    """One row of the page."""
    kid, own = row.kernel, adadiff.kernel
    assert kid is not None and own is not None and row.frechet is not None
    said = "" if row is adadiff else verdict(own, kid)
    return (
        f"| {row.name} | {row.cost:.3f} | {row.frechet:.1f} | {kid.mean:,.0f} "
        f"[{kid.low:,.0f}, {kid.high:,.0f}] | {said} |"
    )


def page(result: ek.Comparison, floor: Interval, seeds: int) -> str:
    """The page: a line a row, and what the article's row is beside each."""
    about = (__doc__ or "").split("\n\n", 2)
    lines = [f"# {about[0]}", "", about[2].strip(), "", f"Samples of each row: {seeds}.", ""]
    lines += [
        "| exits | cost (MACs) | Frechet | KID | `paper` is |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    adadiff = result["paper"]
    lines += [line(row, adadiff) for row in result.rows]
    span = f"[{floor.low:,.0f}, {floor.high:,.0f}]"
    lines.append(f"| half of the real digits | - | - | {floor.mean:,.0f} {span} | - |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the page, and writes it with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained_rivals")
    parser.add_argument("--seeds", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    sampler = ek.Sampler(DDIMScheduler.from_config(scheduler().config), SHAPE, STEPS, batch_size=64)
    real, features = load_digits().held_out_images, load_features()
    result = ek.compare(
        entries(sampler, args.calibration),
        sampler,
        seeds=range(FIRST_SEED, FIRST_SEED + args.seeds),
        metrics=ek.Metrics(features, real, clock=False, exits=False),
        baseline=load_uvit(),
    )
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    first, second = (real[part] for part in order.chunk(2))
    text = page(result, kernel_distance(first, second, features), args.seeds)
    print(text)
    if args.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
