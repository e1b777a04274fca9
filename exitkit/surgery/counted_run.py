"""Dry runs with equal random numbers, and one that counts what the backbone multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exitkit.errors import TracingError
from exitkit.surgery.dry_run import DryRun
from exitkit.surgery.inputs import Bound


def seeded_run(model: nn.Module, inputs: Bound, **options: Any) -> DryRun:
    """A dry run in which forwards that draw numbers draw the same ones; inside of `undisturbed`.

    Arguments:
        model: The backbone.
        inputs: Arguments by name.
        options: Of `DryRun`.

    Returns:
        The run.
    """
    torch.manual_seed(0)
    return DryRun(model, **options).run(inputs)


def counted_run(model: nn.Module, inputs: Bound) -> tuple[DryRun, str]:
    """A run with multiply-accumulates counted, by layers where operators cannot be.

    Arguments:
        model: The backbone.
        inputs: Arguments by name.

    Returns:
        The run, and what was counted.

    Raises:
        TracingError: If the forward raises without being counted, too.
    """
    try:
        run = seeded_run(model, inputs, fingerprints=False, count_macs="operators")
    except TracingError as error:
        # What fails without being counted, too, fails here for its own reason.
        run = seeded_run(model, inputs, fingerprints=False, count_macs="layers")
        reason = f"{type(error.__cause__).__name__}: {error.__cause__}"
    else:
        return run, "MACs of all operators"
    try:  # a forward may rest on the strides that kernels of attention give
        run = seeded_run(model, inputs, fingerprints=False, count_macs="fused")
    except (
        TracingError
    ):  # compiled operators such as FlexAttention do not run under a dispatch mode
        told = "MACs of linear and convolution layers alone: operators cannot be counted"
        return run, f"{told} ({reason:.120})"
    return run, "MACs of all operators, attention in its usual kernels"
