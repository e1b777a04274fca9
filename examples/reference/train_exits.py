"""Trains the exits that the demo compares: `python -m examples.reference.train_exits {relative,paper}`.

`relative` fits heads on the frozen U-ViT, against its own output. `paper` follows the article: the
whole network is fine-tuned together with its heads, from the shipped weights. Both see the digits
of the training part only. `--resume` takes a stopped run up again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

import exitkit as ek

from .digits import load_digits
from .models import WEIGHTS, load_uvit, scheduler

SHAPE = (1, 32, 32)
CHUNK = 100
"""Steps between two looks at the clock."""


def heads_folder(preset: str) -> Path:
    """Where the trained exits of a preset are kept."""
    return WEIGHTS / f"heads_{preset}"


def load_exits(preset: str) -> ek.ExitModel:
    """The trained exits on a U-ViT of their own; for `paper` with its fine-tuned weights."""
    inputs = (torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0]))
    return ek.ExitModel.from_pretrained(load_uvit(), heads_folder(preset), example_inputs=inputs)


def halve(path: Path) -> None:
    """Rewrites a weights file in float16; loading casts back."""
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)


def train_exits(
    preset: str, steps: int, batch: int, max_seconds: float, seed: int, resume: bool = False
) -> None:
    """Fits a preset until `steps` steps or `max_seconds` seconds, and writes its folder."""
    torch.manual_seed(seed)
    inputs = (torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0]))
    model = ek.wrap(load_uvit(), preset, example_inputs=inputs)
    model.print_trainable_parameters()
    images = load_digits().train_images
    loader = DataLoader(
        images,  # type: ignore[arg-type]  # a tensor is a map-style data set of its rows
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    checkpoints = Path("runs") / f"exits_{preset}"
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    start, done = time.monotonic(), 0
    while done < steps and time.monotonic() - start < max_seconds:
        done = min(done + CHUNK, steps)
        # The fused attention of processors is slow in bfloat16, backwards most of all.
        with sdpa_kernel(SDPBackend.MATH):
            result = ek.fit(
                model,
                loader,
                ek.tasks.Noise(scheduler()),
                steps=done,
                seed=seed,
                mixed_precision="bf16",
                checkpoint_dir=checkpoints,
                checkpoint_every=CHUNK,
                progress=False,
            )
        done = max(done, result.steps)
        last = result.history[-1]
        losses = " ".join(f"{name}={value:.4f}" for name, value in last.items() if name != "step")
        print(f"step={done} seconds={time.monotonic() - start:.0f} {losses}", flush=True)
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
        prog="python -m examples.reference.train_exits", description=__doc__.split("\n")[0]
    )
    parser.add_argument("preset", choices=["relative", "paper"])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=float("inf"))
    parser.add_argument("--resume", action="store_true", help="go on from runs/exits_<preset>")
    args = parser.parse_args()
    train_exits(args.preset, args.steps, args.batch, args.max_seconds, args.seed, args.resume)


if __name__ == "__main__":
    main()
