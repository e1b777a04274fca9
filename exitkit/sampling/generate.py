"""Generation by seeds: each sample owns its noise, so it does not depend on its batch mates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.execution.calls import CallForm
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.sampling.conditions import (
    Inputs,
    call_form,
    placement,
    select_inputs,
)
from exitkit.sampling.solvers import Solver, draw_noise, make_solver, seeded

Edit = Callable[[int, Tensor, Tensor], Tensor]
"""Changes a prediction on its way to the solver: (call, seeds, prediction) to prediction."""


@dataclass(frozen=True)
class Sample:
    """What `generate` returns.

    Attributes:
        images: Final states on the CPU, with shape (n, *shape), in the order of the seeds.
        seeds: Seed of each sample.
        trace: What was executed, over all samples and steps; None for a bare module.
        seconds: Wall clock, noise and sampler included.
    """

    images: Tensor
    seeds: tuple[int, ...]
    trace: Trace | None
    seconds: float


def generate(
    model: Callable[..., Any],
    scheduler: Any,
    shape: Sequence[int],
    *,
    steps: int = 50,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    count: int | None = None,
    batch_size: int = 64,
    inputs: Inputs | None = None,
    guidance_scale: float | None = None,
    negative_inputs: Inputs | None = None,
    progress: bool = False,
) -> Sample:
    """Generates samples from pure noise, with or without early exit.

    A wrapped model runs inside a trajectory of its own for each batch. The network is put into
    evaluation mode meanwhile. The sampler's arithmetic stays in float32 when the model is smaller.

    Arguments:
        model: A wrapped model, or any module or function called as `model(x, t, **inputs)` with
            noisy inputs of shape (B, *shape) and timesteps of shape (B). It may return a tensor, a
            tuple, or an output object with `.sample`; twice the channels are a learned variance.
        scheduler: A diffusers scheduler, which is copied, or a short name as in
            `exitkit.sampling.solvers.SAMPLERS`.
        shape: Shape of one sample.
        steps: Sampler steps.
        seed: Seed of the first sample, counted up for the others.
        seeds: One seed for each sample, instead of `seed` and `count`.
        count: Number of samples; 1 if neither it nor `seeds` is given.
        batch_size: Samples that run together.
        inputs: Conditioning: tensors of as many rows as there are samples, by argument name (dicts
            and lists of them too; anything else is passed on), or a function of row numbers.
        guidance_scale: Classifier-free guidance: negative + scale * (conditional - negative).
        negative_inputs: Conditioning of the negative call, as `inputs`.
        progress: Whether to show a progress bar.

    Returns:
        The samples.

    Raises:
        ConfigError: If an argument is out of range or two of them disagree.
        ShapeError: If the model's output or a conditioning tensor has the wrong shape.
        NonFiniteError: If the model returns NaN or infinity.
    """
    return generate_edited(
        model,
        scheduler,
        shape,
        None,
        steps=steps,
        seeds=_seeds(seed, seeds, count),
        batch_size=batch_size,
        inputs=inputs,
        guidance_scale=guidance_scale,
        negative_inputs=negative_inputs,
        progress=progress,
    )


def generate_edited(
    model: Callable[..., Any],
    scheduler: Any,
    shape: Sequence[int],
    edit: Edit | None,
    *,
    steps: int,
    seeds: Sequence[int],
    batch_size: int = 64,
    inputs: Inputs | None = None,
    guidance_scale: float | None = None,
    negative_inputs: Inputs | None = None,
    progress: bool = False,
) -> Sample:
    """Does what `generate` does, and lets `edit` change the predictions: for measurements.

    Arguments:
        model: As in `generate`.
        scheduler: As in `generate`.
        shape: As in `generate`.
        edit: Gets the index of the call, the seeds of the rows, with shape (B), and the prediction,
            with shape (B, ...); its result goes to the solver.
        steps: As in `generate`.
        seeds: As in `generate`.
        batch_size: As in `generate`.
        inputs: As in `generate`.
        guidance_scale: As in `generate`.
        negative_inputs: As in `generate`.
        progress: As in `generate`.

    Returns:
        The samples.

    Raises:
        ConfigError: As in `generate`.
        ShapeError: As in `generate`.
        NonFiniteError: As in `generate`.
    """
    shape = _shape(shape)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    if (guidance_scale is None) != (negative_inputs is None):
        raise ConfigError(
            "guidance_scale and negative_inputs belong together: the second call of each step is "
            "made with negative_inputs (an empty dict drops all conditioning)."
        )
    device, dtype = placement(model)
    branches = [inputs] if guidance_scale is None else [inputs, negative_inputs]
    images, traces = [], []
    started = _clock(device)
    with torch.no_grad(), _evaluating(model), tqdm(disable=not progress, unit="step") as bar:
        for first in range(0, len(seeds), batch_size):
            rows = torch.arange(first, min(first + batch_size, len(seeds)))
            solver = make_solver(scheduler, steps, device=device)
            bar.total = len(solver.timesteps) * -(-len(seeds) // batch_size)
            given = [select_inputs(i, rows, len(seeds), device, dtype) for i in branches]
            own = torch.tensor(seeds)[rows]
            walk = _Walk(model, solver, given, guidance_scale or 0.0, own, edit, dtype)
            if not isinstance(model, ExitModel):
                images.append(walk.run(shape, device, bar).cpu())
                continue
            with model.trajectory(steps=solver.steps):
                images.append(walk.run(shape, device, bar).cpu())
            traces.append(model.trace)
    seconds = _clock(device) - started
    trace = Trace.join(traces) if traces else None
    return Sample(torch.cat(images), tuple(seeds), trace, seconds)


@dataclass
class _Walk:
    """One batch from noise to samples."""

    model: Callable[..., Any]
    solver: Solver
    branches: list[dict[str, Any]]
    scale: float
    seeds: Tensor
    edit: Edit | None
    dtype: torch.dtype

    def run(self, shape: tuple[int, ...], device: torch.device, bar: Any) -> Tensor:
        generators = seeded(self.seeds.tolist())
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        noise = draw_noise(shape, generators).to(device, exact)
        x = self.solver.start(noise)
        form = call_form(self.model)
        for call, timestep in enumerate(self.solver.timesteps):
            fed = self.solver.model_input(x, call).to(self.dtype)
            times = timestep.to(device).expand(len(x))
            outputs = [
                self._predict(form, times, given, fed, call).to(exact) for given in self.branches
            ]
            guided = self._combine(outputs, shape[0])
            if self.edit is not None:
                guided = self.edit(call, self.seeds, guided)
            x = self.solver.step(guided, x, call, generators)
            bar.update()
        return x

    def _predict(
        self, form: CallForm, times: Tensor, given: dict[str, Any], fed: Tensor, call: int
    ) -> Tensor:
        asked = form.arguments(fed, times, **given)
        prediction = form.prediction(self.model(*asked.args, **asked.kwargs), fed)
        name, want, have = _name(self.model), tuple(fed.shape), tuple(prediction.shape)
        if have not in (want, (want[0], 2 * want[1], *want[2:])):
            raise ShapeError(
                f"{name} returned a prediction of shape {have} for noisy inputs of shape {want}. "
                "Expected the same shape, or twice the channels (learned variance). Is `shape` the "
                "shape of one sample, without the batch?"
            )
        finite = torch.isfinite(prediction).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"{name} returned NaN or infinity at step {call} of {len(self.solver.timesteps)}, "
                f"timestep {float(self.solver.timesteps[call]):g}, for seeds "
                f"{self.seeds[~finite.cpu()].tolist()[:8]}. Check the weights and the inputs; in "
                "half precision, whether the network overflows."
            )
        return prediction

    def _combine(self, outputs: list[Tensor], channels: int) -> Tensor:
        """Guides with the branches; a learned variance is that of the conditional one."""
        mean = outputs[0][:, :channels]
        if len(outputs) == 2:
            negative = outputs[1][:, :channels]
            mean = negative + self.scale * (mean - negative)
        if self.solver.learned_variance:
            mean = torch.cat([mean, outputs[0][:, channels:]], dim=1)
        return mean


def _seeds(seed: int, seeds: Sequence[int] | None, count: int | None) -> tuple[int, ...]:
    if seeds is None:
        n = 1 if count is None else count
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"count must be a whole number of at least 1, got {count!r}.")
        chosen = tuple(range(seed, seed + n))
    else:
        chosen = tuple(seeds)
        if count is not None and count != len(chosen):
            raise ConfigError(
                f"count={count}, but there are {len(chosen)} seeds. Pass only one of the two."
            )
    if not chosen:
        raise ConfigError("seeds is empty; name at least one, or pass count.")
    return tuple(_seed(value) for value in chosen)


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
        raise ConfigError(f"A seed must be a whole number in [0, 2^63), got {value!r}.")
    return int(value)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ConfigError(
            f"shape must hold the sizes of one sample, such as (3, 32, 32), got {shape!r}."
        )
    return sizes


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Sets evaluation mode and puts every submodule's own flag back."""
    flags = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    if any(flags.values()):
        model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(model: Any) -> str:
    return type(model.backbone if isinstance(model, ExitModel) else model).__name__
