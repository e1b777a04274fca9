"""Trains the demo's exits: `python -m examples.reproduction.models.train_exits {relative,paper}`.

By the recipe that `exitkit compare` fits its methods with. `relative` fits heads on the frozen
U-ViT, against its own output. `paper` follows the article: the whole network is fine-tuned together
with its heads, from the shipped weights. Both see the digits of the training part only. A run that
was stopped is taken up again where its checkpoints are kept.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from exitkit.benchmark import Recipe, fitted, methods_for
from exitkit.training.settings import Checkpoints, Record

from . import suites
from .models import heads_folder

METHODS = {"relative": "adadiff relative", "paper": "adadiff paper"}
"""The method of the catalogue whose exits a preset's are."""


def halve(path: Path) -> None:
    """Rewrites a weights file in float16; loading casts back."""
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)


def train_exits(preset: str, steps: int, batch: int, seed: int, work: Path) -> None:
    """Fits a preset's exits and writes their folder.

    Args:
        preset: `relative` or `paper`.
        steps: Optimiser steps, with half as many on the heads alone before them.
        batch: Rows of a step.
        seed: Seed of data and noise.
        work: Folder of checkpoints and finished fits.
    """
    (method,) = methods_for([METHODS[preset]])
    start = time.monotonic()

    def say(record: Record) -> None:
        shown = " ".join(f"{name}={value:.4f}" for name, value in record.items() if name != "step")
        print(
            f"step={int(record['step'])} seconds={time.monotonic() - start:.0f} {shown}", flush=True
        )

    # The fused attention of processors is slow in bfloat16, backwards most of all.
    with sdpa_kernel(SDPBackend.MATH):
        kept = Checkpoints(every=100)
        options = {"precision": "bf16", "checkpoints": kept, "callback": say}
        recipe = Recipe(steps, batch, seed=seed, fit=options)
        model = fitted(suites.uvit(), method.exits, recipe, work)
    folder = heads_folder(preset)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    if preset == "paper":
        halve(folder / "backbone.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its files private to their owner
    print(f"wrote {folder}")


def main() -> None:
    """Runs the training that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduction.models.train_exits",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument("preset", choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/exits"))
    args = parser.parse_args()
    train_exits(args.preset, args.steps, args.batch, args.seed, args.work)


if __name__ == "__main__":
    main()
