"""Trains exits: `accelerate launch -m examples.reproduction.full.train cifar10 [--data DIR] [--out DIR]`.

Started again with the same settings it goes on from its last checkpoint, with the same numbers as
if nothing had happened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import exitkit as ek

from .conditions import conditions
from .config import Experiment
from .latents import LatentExamples
from .loading import arguments, from_arguments
from .models import wrap_exits
from .noise import UViTNoise, discrete_scheduler
from .processes import start
from .shards import claim, replace
from .sources import Examples


def train(experiment: Experiment, accelerator: Any, out: Path) -> Path:
    """Trains the exits of an experiment.

    Arguments:
        experiment: The experiment.
        accelerator: What `processes.start` made.
        out: Folder of checkpoints and results.

    Returns:
        The folder of the trained exits.
    """
    recipe = experiment.recipe
    batch = recipe.share(accelerator.num_processes)
    if accelerator.is_main_process:
        claim(out, identity(experiment))
    accelerator.wait_for_everyone()
    model = wrap_exits(experiment, accelerator.device)
    if accelerator.is_main_process:
        model.print_trainable_parameters()
    carried = model.heads.kind.needs_trajectory
    data = rollouts(experiment, model, batch) if carried else loader(experiment, batch)
    result = ek.fit(
        model,
        data,
        None if carried else UViTNoise(experiment.schedule),
        steps=recipe.steps,
        optimizer=ek.Optimizer(
            lr=recipe.lr,
            head_lr=recipe.lr,
            uncertainty_lr=recipe.uncertainty_lr,
            matrices=None,
            schedule="constant",
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            warmup=recipe.warmup,
            clip=recipe.clip,
            accumulation=recipe.accumulation,
        ),
        checkpoints=ek.Checkpoints(
            out / "checkpoints", every=recipe.checkpoint_every, log_every=recipe.log_every
        ),
        ema=recipe.ema,
        seed=recipe.seed,
        accelerator=accelerator,
    )
    folder = out / "exits"
    if accelerator.is_main_process:
        replace(out / "history.json", json.dumps(result.history, indent=1).encode())
        # A reader may come at any time, so the folder is written beside its place and renamed.
        partial = out / ".partial-exits"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        print(f"wrote {folder} after {result.steps} steps, {result.seconds:.0f} s", flush=True)
    accelerator.wait_for_everyone()
    return folder


def loader(experiment: Experiment, batch: int) -> DataLoader[dict[str, Any]]:
    """Shuffled batches of one process's size; `fit` splits them among the processes."""
    data = Examples(experiment) if experiment.latents is None else LatentExamples(experiment)
    recipe = experiment.recipe
    return DataLoader(
        data,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=recipe.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(recipe.seed),
    )


def rollouts(experiment: Experiment, model: ek.ExitModel, batch: int) -> ek.Rollouts:
    """Trajectories of the full model, for exits that correct a carried rest: no images needed."""
    recipe, given = experiment.recipe, conditions(experiment)
    guided: dict[str, Any] = {}
    if given is not None:
        # Numbers far from those of the samples that are judged later.
        guided = given.options(1_000_003)
    sampler = ek.Sampler(
        discrete_scheduler(experiment.schedule),
        experiment.sample_shape,
        recipe.rollout_steps,
        batch_size=batch,
        **guided,
    )
    first = recipe.seed * recipe.rollouts
    return ek.Rollouts(model, sampler, range(first, first + recipe.rollouts))


def identity(experiment: Experiment) -> dict[str, Any]:
    """What must stay the same for a run to go on; `steps` may grow."""
    described = experiment.model_dump(mode="json", exclude={"sampling": True, "name": True})
    described["exits"] = experiment.exits.preset
    for part in ("training", "heads"):
        del described[part]
    free = {"steps", "checkpoint_every", "workers"}
    return {**described, "recipe": experiment.recipe.model_dump(mode="json", exclude=free)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = arguments("train", __doc__)
    parser.add_argument("--preset", help="paper, official, relative or carried")
    parser.add_argument("--weights", help="the published U-ViT checkpoint")
    parser.add_argument("--out", help="folder of checkpoints and results; runs/NAME-PRESET if left")
    args = parser.parse_args(argv)
    changes = [f"exits.preset={args.preset}"] if args.preset else []
    changes += [f"backbone.weights={args.weights}"] if args.weights else []
    experiment = from_arguments(args, *changes)
    out = Path(args.out or f"runs/{experiment.name}-{experiment.exits.preset}")
    with start(experiment.recipe.precision) as accelerator:
        train(experiment, accelerator, out)


if __name__ == "__main__":
    main()
