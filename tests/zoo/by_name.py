"""Specimens written as data: a class by name, its options, and what draws each input."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.surgery.inputs import Inputs
from tests.zoo.specimen import Specimen

Draw = Callable[[int], Tensor]


def normal(*shape: int) -> Draw:
    """Normal numbers of this shape for every row."""
    return lambda rows: torch.randn(rows, *shape)


def classes(count: int) -> Draw:
    """A class for every row."""
    return lambda rows: torch.randint(0, count, (rows,))


def sigmas(rows: int) -> Tensor:
    """A noise level for every row."""
    return 0.1 + 2 * torch.rand(rows)


def make(module: str, name: str, options: dict[str, Any]) -> nn.Module:
    """Imports a class and calls it; an option may be a function that makes it."""
    given = {key: value() if callable(value) else value for key, value in options.items()}
    model: nn.Module = getattr(importlib.import_module(module), name)(**given)
    return model


def draw(inputs: dict[str, Any], rows: int) -> Inputs:
    """Inputs by keyword; what is no function is the same for all rows."""
    return Inputs(**{key: of(rows) if callable(of) else of for key, of in inputs.items()})


def specimen(
    package: str,
    name: str,
    module: str,
    options: dict[str, Any],
    inputs: dict[str, Any],
    variant: str = "",
    note: str = "",
) -> Specimen:
    """A specimen whose inputs are given by keyword."""
    return Specimen(
        f"{package}.{name}{variant}",
        partial(make, module, name, options),
        partial(draw, inputs),
        note=note,
    )
