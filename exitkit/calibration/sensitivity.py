"""What an error at one step does to the final sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exitkit.calibration.acting import acting
from exitkit.errors import ConfigError
from exitkit.policies import NeverExit
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import SamplerBase


def sensitivity(
    model: Any,
    sampler: SamplerBase,
    seeds: Sequence[int],
    *,
    points: int = 8,
    size: float = 0.02,
    progress: bool = False,
) -> Tensor:
    r"""Measures :math:`\kappa_s`, the final error per relative error of the prediction at step s.

    A full generation is repeated with white noise of relative size `size` added to the prediction
    of one step. A few steps are measured; between them the logarithm is interpolated.

    Arguments:
        model: A wrapped model, which runs to the end meanwhile, or anything the sampler takes.
        sampler: How samples are made.
        seeds: Seeds of the samples; eight are enough.
        points: How many steps are measured, the first and the last among them.
        size: Root mean square of the added error over that of the prediction.
        progress: Whether to show a progress bar.

    Returns:
        :math:`\kappa`, above 0, with shape (S): root mean square error of the final sample, in its
        own units, per unit of relative error.

    Raises:
        ConfigError: If `points` or `size` is not positive.
    """
    if points < 1 or not size > 0:
        raise ConfigError(f"points and size must be positive, got {points!r} and {size!r}.")
    total = 0

    def run(at: int | None, doing: str) -> Tensor:
        def edit(step: int, own: Tensor, prediction: Tensor) -> Tensor:
            nonlocal total
            total = max(total, step + 1)
            if step != at:
                return prediction
            sources = [torch.Generator().manual_seed(int(s) * 1_000_003 + step) for s in own]
            noise = torch.stack([torch.randn(prediction.shape[1:], generator=g) for g in sources])
            rms = prediction.flatten(1).square().mean(dim=1).sqrt()
            rms = rms.view(-1, *[1] * (prediction.ndim - 1))
            return prediction + size * rms * noise.to(prediction)

        samples: Tensor = sampler.run(
            model, seeds, edit=edit, progress=progress, doing=doing
        ).samples
        return samples

    with acting(model, NeverExit()):
        reference = run(None, "full model")
        measured = torch.linspace(0, total - 1, min(points, total)).round().long().unique()
        errors = [
            float(paired_distance(run(s, f"step {i} of {len(measured)}"), reference).mean())
            for i, s in enumerate(measured.tolist(), 1)
        ]
    logs = torch.tensor([math.log(max(e / size, 1e-12)) for e in errors], dtype=torch.float64)
    return interpolate(measured, logs, total).exp()


def interpolate(at: Tensor, values: Tensor, total: int) -> Tensor:
    """Fills the gaps between values at some whole numbers.

    Arguments:
        at: Where values are known: rising, from 0 to `total` - 1, with shape (P).
        values: The values, with shape (P).
        total: Length of the result, S.

    Returns:
        Values at 0..S-1, with shape (S).
    """
    steps = torch.arange(total)
    right = torch.searchsorted(at, steps).clamp(max=len(at) - 1)
    left = (right - 1).clamp(min=0)
    gap = (at[right] - at[left]).clamp(min=1)
    share = ((steps - at[left]) / gap).to(values.dtype)
    return torch.where(
        at[right] == steps, values[right], values[left] + share * (values[right] - values[left])
    )
