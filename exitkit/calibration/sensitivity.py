"""What an error at one step does to the final image, and how large the errors of exits are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.calibration.workload import acting
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.policies import NeverExit
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.network import call_form
from exitkit.sampling.positions import sampler_from
from exitkit.sampling.solvers import Solver, make_solver


def sensitivity(
    model: Callable[..., Any],
    scheduler: Any,
    shape: Sequence[int],
    steps: int,
    count: int = 8,
    *,
    points: int = 8,
    size: float = 0.02,
    seed: int = 20_000,
    **options: Any,
) -> Tensor:
    r"""Measures :math:`\kappa_s`, the final error per relative error of the prediction at step s.

    A full generation is repeated with white noise of relative size `size` added to the prediction
    of one step. A few steps are measured; between them the logarithm is interpolated.

    Arguments:
        model: A wrapped model, which runs to the end meanwhile, or anything `generate` takes.
        scheduler: As in `generate`.
        shape: Shape of one sample.
        steps: Sampler steps.
        count: Number of samples.
        points: How many steps are measured, the first and the last among them.
        size: Root mean square of the added error over that of the prediction.
        seed: Seed of the first sample.
        options: Further arguments of `generate`.

    Returns:
        :math:`\kappa`, above 0, with shape (S): root mean square error of the final image, in its
        own units, per unit of relative error.

    Raises:
        ConfigError: If `points` or `size` is not positive.
    """
    if points < 1 or not size > 0:
        raise ConfigError(f"points and size must be positive, got {points!r} and {size!r}.")
    step_of = step_of_call(make_solver(scheduler, steps))
    total = step_of[-1] + 1
    options |= {"steps": steps, "seeds": range(seed, seed + count)}
    sampler, seeds_ = sampler_from(scheduler, shape, options)

    def run(at: int | None) -> Tensor:
        def edit(call: int, seeds: Tensor, prediction: Tensor) -> Tensor:
            if step_of[call] != at:
                return prediction
            sources = [torch.Generator().manual_seed(int(s) * 1_000_003 + call) for s in seeds]
            noise = torch.stack([torch.randn(prediction.shape[1:], generator=g) for g in sources])
            rms = prediction.flatten(1).square().mean(dim=1).sqrt()
            rms = rms.view(-1, *[1] * (prediction.ndim - 1))
            return prediction + size * rms * noise.to(prediction)

        return sampler.run(model, seeds_, edit=edit).samples

    with acting(model, NeverExit()) if isinstance(model, ExitModel) else nullcontext():
        reference = run(None)
        measured = torch.linspace(0, total - 1, min(points, total)).round().long().unique()
        errors = [float(paired_distance(run(s), reference).mean()) for s in measured.tolist()]
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
    places = torch.arange(total)
    right = torch.searchsorted(at, places).clamp(max=len(at) - 1)
    left = (right - 1).clamp(min=0)
    gap = (at[right] - at[left]).clamp(min=1)
    share = ((places - at[left]) / gap).to(values.dtype)
    return torch.where(
        at[right] == places, values[right], values[left] + share * (values[right] - values[left])
    )


def step_of_call(solver: Solver) -> list[int]:
    """Numbers the steps of a trajectory: calls in a row at one timestep are one step.

    Arguments:
        solver: The solver.

    Returns:
        The index of the step of each call.
    """
    moved = solver.timesteps[1:] != solver.timesteps[:-1]
    return [0, *moved.cumsum(0).tolist()]


class _Probe(nn.Module):
    """Passes a full prediction on and notes how far each exit is from it."""

    def __init__(self, model: ExitModel) -> None:
        super().__init__()
        self.model = model
        self.seen: dict[float, list[Tensor]] = {}
        self._form = call_form(model)

    def forward(self, x: Tensor, t: Tensor, **given: Any) -> Any:
        call = self._form.arguments(x, t, **given)
        out = self.model(*call.args, output_exits=True, **call.kwargs)
        scale = out.prediction.flatten(1).square().mean(dim=1).sqrt()
        gaps = [paired_distance(exit, out.prediction) / scale for exit in out.exits]
        self.seen.setdefault(float(t[0]), []).append(torch.stack(gaps, dim=1))
        return out.prediction


def exit_errors(model: ExitModel, scheduler: Any, shape: Sequence[int], **options: Any) -> Tensor:
    """Measures how far each exit's prediction is from the full one, along the full model's way.

    Arguments:
        model: The wrapped model; not with carried exits.
        scheduler: As in `generate`.
        shape: Shape of one sample.
        options: Further arguments of `generate`.

    Returns:
        Mean relative error by step and exit, with shape (S, K).
    """
    probe = _Probe(model)
    sampler, seeds = sampler_from(scheduler, shape, options)
    sampler.run(probe, seeds)
    return torch.stack([torch.cat(rows).mean(dim=0) for rows in probe.seen.values()]).double().cpu()
