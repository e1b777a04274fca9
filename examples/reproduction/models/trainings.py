"""All trainings of exits: what is run, for how long, and what changes from the default recipe."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 1800
"""Steps of 64 rows of every main run: the same for all rivals."""
SHORT = 900
"""Steps of ablations; the whole recipe at this length is their control."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Its name, also of its folder.
        network: The reference network.
        preset: Name in `train_exits.EXITS`.
        steps: Optimiser steps.
        options: Further words of the command line of `train_exits`.
        group: `main` for the tables, `control` for the bare networks, `loss` for the article's ablations,
            `recipe` for those of the training itself.
    """

    name: str
    network: str
    preset: str
    steps: int
    options: tuple[str, ...] = ()
    group: str = "main"


def _main(network: str, *presets: str) -> list[Run]:
    return [
        Run(
            f"{network}_{preset}",
            network,
            preset,
            STEPS,
            (),
            "control" if preset == "bare" else "main",
        )
        for preset in presets
    ]


def _loss(name: str) -> Run:
    return Run(f"uvit_ablation_{name}", "uvit", f"ablation_{name}", SHORT, (), "loss")


def _recipe(name: str, *options: str, steps: int = SHORT, preset: str = "paper") -> Run:
    return Run(f"uvit_{preset}_{name}", "uvit", preset, steps, options, "recipe")


_ADAMW = ("--matrices", "adamw")

RUNS: tuple[Run, ...] = (
    *_main("uvit", "paper", "berxit", "calm", "official", "pabee", "relative", "bare"),
    *_main("dit", "paper", "berxit", "calm", "official", "relative", "bare"),
    *_main("pixart", "paper", "berxit", "calm", "official"),
    *_main("unet", "paper", "berxit", "relative"),
    *(_loss(n) for n in ("uniform", "shared", "attached", "frozen", "own_tail", "no_ual")),
    *(_recipe(str(steps), steps=steps) for steps in (300, 900, 3600, 7200)),
    _recipe("adamw_2e-4", *_ADAMW, "--lr", "2e-4", "--head-lr", "5e-3"),
    _recipe("adamw_1e-3", *_ADAMW),
    _recipe("u998", "--u-start", "0.998"),
    _recipe("head_1e-3", "--head-lr", "1e-3"),
    _recipe("heads_first", "--head-steps", "300", steps=600),
    _recipe("batch_256", "--batch", "256"),
    _recipe("1e-3", "--lr", "1e-3", preset="relative"),
    _recipe("1e-2", "--lr", "1e-2", preset="relative"),
)
"""In order of their importance."""
