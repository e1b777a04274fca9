"""What trained exits do on the 500 held-out digits, on noise and timesteps that never change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import exitkit as ek
from exitkit.benchmark import Suite
from exitkit.modes.flags import evaluating
from exitkit.training.batches import Example
from exitkit.training.objective import arguments

from .digits import load_digits
from .models import scheduler

Figures = dict[str, float | list[float]]


def held_out_examples(suite: Suite, rows: int = 100) -> Iterator[Example]:
    """The held-out digits with the noise and timesteps of `train.py`, under their true conditions.

    Args:
        suite: The suite of the network.
        rows: Rows of one example.

    Yields:
        Examples with the noise as target.
    """
    digits = load_digits()
    images, labels = digits.held_out_images, digits.held_out_labels
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    # Evenly spread timesteps; the images come shuffled, so a part holds digits of all classes.
    t = torch.linspace(0, 999, len(images)).long()
    noisy = scheduler().add_noise(images, noise, t)
    conditions = getattr(suite.sampler, "conditions", None)
    for first in range(0, len(images), rows):
        part = slice(first, first + rows)
        # Samplers of the suites draw seed s under the condition of digit s % 10.
        given = conditions(labels[part]) if callable(conditions) else {}
        yield Example((noisy[part], t[part]), given, noise[part])


@torch.no_grad()
def held_out(model: ek.ExitModel, suite: Suite) -> Figures:
    """Errors of the full network and of every exit.

    Args:
        model: The wrapped network.
        suite: Its suite.

    Returns:
        `full`: squared error of the full output against the noise; `exits`: that of each exit;
        `gap`: squared distance of each exit to the full output; `u`: mean uncertainty of each head.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    rows = 0
    with evaluating(model):
        for example in held_out_examples(suite):
            example = example.to(device)
            args, named = arguments(model, example)
            out, target = model(*args, **named, output_exits=True), example.target
            assert target is not None
            found = {
                "full": (out.prediction - target).square().mean(),
                "exits": torch.stack([(e - target).square().mean() for e in out.exits]),
                "gap": torch.stack([(e - out.prediction).square().mean() for e in out.exits]),
                "u": torch.stack([u.mean() for u in out.uncertainty]),
            }
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.double() * len(target)
            rows += len(target)
    return {name: _rounded((value / rows).tolist()) for name, value in sums.items()}


def _rounded(values: Any) -> Any:
    return [round(v, 6) for v in values] if isinstance(values, list) else round(values, 6)


def line(figures: Figures) -> str:
    """Figures as a line of a log."""

    def told(value: float | list[float]) -> str:
        return ",".join(f"{v:.4f}" for v in (value if isinstance(value, list) else [value]))

    return " ".join(f"{name}={told(value)}" for name, value in figures.items())
