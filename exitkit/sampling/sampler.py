"""Samplers: how trajectories are run. Everything else gets one object and asks it for samples."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import override

from exitkit.errors import ConfigError
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel, Wrapped
from exitkit.modes.flags import evaluating
from exitkit.sampling.completion_walk import Completable, CompletionWalk
from exitkit.sampling.conditions import Conditions, check_conditions, conditions_of
from exitkit.sampling.describing import by_name, plain_values, settings_of
from exitkit.sampling.loop import Loop
from exitkit.sampling.network import check_call, check_prediction_type, placement, planned
from exitkit.sampling.sample import Edit, Record, Sample
from exitkit.sampling.sampler_walk import SamplerWalk, aimed
from exitkit.sampling.seeds import seed_list
from exitkit.sampling.solvers import make_scheduler, make_solver

DELAY = 2.0
"""Seconds of work before a progress bar shows."""


class SamplerBase(Completable, ABC):
    """How a trajectory is run: what `generate`, `fit`, `calibrate` and `compare` take.

    Attributes:
        steps: Steps of a trajectory.
        batch_size: Samples that run together.
    """

    steps: int
    batch_size: int

    def run(
        self,
        model: Callable[..., Any],
        seeds: Sequence[int],
        *,
        edit: Edit | None = None,
        record: Record | None = None,
        progress: bool = False,
        doing: str = "sample",
    ) -> Sample:
        """Runs one trajectory for each seed.

        A wrapped model runs inside a trajectory of its own for each batch. The network is in
        evaluation mode meanwhile.

        Arguments:
            model: A wrapped model, or any module or function that is called alike.
            seeds: One seed a sample; a sample does not depend on its batch mates.
            edit: Changes what the backbone predicts, in every branch of guidance.
            record: Runs the full model in place of the model's own calls, and keeps what it sees.
            progress: Whether to show a progress bar.
            doing: What the bar calls it; below another bar (of `calibrate`) it goes when it is done.

        Returns:
            The samples.

        Raises:
            ConfigError: If a seed is out of range, or the scheduler takes the predictions for something
                else than the fit of the model.
            ShapeError: If the model's output has the wrong shape.
            NonFiniteError: If the model returns NaN or infinity.
        """
        if record is None:  # a fit on what is recorded says anew what is predicted
            check_prediction_type(model, self.describe)
        (device, _), chosen = placement(model), seed_list(seeds)
        samples, traces = list[Tensor](), list[Trace]()
        started = _clock(device)
        mode = evaluating(model) if isinstance(model, nn.Module) else nullcontext()
        parts = torch.tensor(chosen).split(self.batch_size)
        bar = tqdm(disable=not progress, unit="step", desc=doing, delay=DELAY, leave=None)
        with torch.no_grad(), mode, bar:
            bar.total = len(parts) * self.ticks
            for part in parts:
                if record is not None:
                    record.start(part)
                if isinstance(model, Wrapped) and record is None:
                    with model.trajectory(steps=self.trajectory_steps) as opened:
                        samples.append(self.run_batch(model, part, edit, record, bar.update).cpu())
                    traces += [] if opened.trace is None else [opened.trace]
                else:
                    samples.append(self.run_batch(model, part, edit, record, bar.update).cpu())
        traces = [trace for trace in traces if trace.calls]  # none of a model that is suspended
        trace = Trace.join(traces) if traces else None
        made = torch.cat(samples)
        return Sample(made, chosen, trace, _clock(device) - started, self.decoded(made))

    def decoded(self, samples: Tensor) -> Any:
        """Pictures, sound or frames among the samples, with shape (n, ...), or None."""
        return None

    @property
    def ticks(self) -> int:
        """How often `run_batch` ticks."""
        return self.steps

    @property
    def trajectory_steps(self) -> int | None:
        """Steps that a policy may count on: one for each timestep; None where nobody knows yet."""
        return self.steps

    @property
    def trajectories(self) -> int:
        """On how many trajectories exits are fitted, where nothing is said."""
        return 256

    @property
    def comparisons(self) -> int:
        """On how many samples entries are compared, where nothing is said."""
        return 256

    @property
    def draws(self) -> int:
        """How many rows of recorded trajectories one step of a fit takes."""
        return self.batch_size

    def bare(self, backbone: nn.Module, model: Wrapped) -> nn.Module:
        """A bare backbone in the form that this sampler calls.

        Arguments:
            backbone: The bare backbone.
            model: A wrapped backbone of the same kind.
        """
        return planned(backbone, model) if isinstance(model, ExitModel) else backbone

    @abstractmethod
    def run_batch(
        self,
        model: Callable[..., Any],
        seeds: Tensor,
        edit: Edit | None,
        record: Record | None,
        tick: Callable[[], Any],
    ) -> Tensor:
        """Runs one batch.

        Arguments:
            model: As in `run`.
            seeds: Seeds of the batch, int64 on the CPU, with shape (B,).
            edit: As in `run`.
            record: As in `run`; it knows that the batch begins.
            tick: To be called after each evaluation.

        Returns:
            The samples, with shape (B, ...).
        """

    @abstractmethod
    def with_steps(self, steps: int) -> Self:
        """The same sampler with another number of steps."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What identifies the sampler, as values that survive JSON."""


@dataclass(frozen=True)
class Sampler(SamplerBase):
    """A diffusers scheduler, a shape, and what a backbone is called with.

    Arguments:
        scheduler: A diffusers scheduler, which is copied, or a short name as in
            `exitkit.sampling.SAMPLERS`.
        shape: Shape of one sample, without the batch.
        steps: Steps of a trajectory, at least 1.
        conditions: Keyword arguments of the backbone: a mapping of pools of n entries, of which seed
            s gets entry s mod n, or a function of seeds, int64 with shape (B,).
        guidance_scale: Classifier-free guidance, negative + scale * (conditional - negative): two
            calls a step, the conditional one first.
        negative_conditions: Conditions of the negative call; an empty dict drops all.
        batch_size: Samples that run together.

    Raises:
        ConfigError: If an argument is out of range, or two of them disagree.
        ShapeError: If pools differ in length.

    Example:
        >>> Sampler("ddim", (3, 32, 32)).with_steps(25).steps
        25
    """

    scheduler: Any
    shape: tuple[int, ...]
    steps: int = 50
    conditions: Conditions | None = None
    guidance_scale: float | None = None
    negative_conditions: Conditions | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Checks the arguments, so that a misfit shows here and not after an hour."""
        sizes = tuple(self.shape) if hasattr(self.shape, "__iter__") else ()
        if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
            raise ConfigError(
                "Sampler: shape must hold the sizes of one sample, such as (3, 32, 32), got "
                f"{self.shape!r}."
            )
        object.__setattr__(self, "shape", sizes)
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"Sampler: batch_size must be a whole number of at least 1, got {size!r}."
            )
        if (self.guidance_scale is None) != (self.negative_conditions is None):
            raise ConfigError(
                "Sampler: guidance_scale and negative_conditions belong together: the second call of "
                "each step is made with negative_conditions (an empty dict drops all conditions)."
            )
        scale = self.guidance_scale
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise ConfigError(f"Sampler: guidance_scale must be a number, got {scale!r}.")
        check_conditions(self.conditions)
        check_conditions(self.negative_conditions, "negative_conditions")
        make_solver(self.scheduler, self.steps)

    @property
    @override
    def ticks(self) -> int:
        return len(make_solver(self.scheduler, self.steps).timesteps)

    @property
    @override
    def trajectory_steps(self) -> int:
        return make_solver(self.scheduler, self.steps).steps

    @override
    def run_batch(
        self,
        model: Callable[..., Any],
        seeds: Tensor,
        edit: Edit | None,
        record: Record | None,
        tick: Callable[[], Any],
    ) -> Tensor:
        device, dtype = placement(model)
        solver = make_solver(self.scheduler, self.steps, device=device)
        branches, scale = self.branches(seeds, device, dtype), self.guidance_scale or 0.0
        check_call(model, self.shape, branches)
        loop = Loop(model, solver, branches, scale, seeds, dtype, edit, record)
        return loop.run(self.shape, device, tick)

    @override
    def completion_walk(
        self, model: ExitModel, seeds: tuple[int, ...], progress: bool
    ) -> CompletionWalk:
        assert model.heads.completion is not None
        return SamplerWalk(model, model.heads.completion, self, seeds, progress)

    @override
    def aimed(self, model: ExitModel, seeds: Tensor) -> Tensor:
        return aimed(model, self, seeds)[0]

    def branches(
        self, seeds: Tensor, device: torch.device, dtype: torch.dtype
    ) -> list[dict[str, Any]]:
        """Conditions of each call of one evaluation."""
        found = [conditions_of(self.conditions, seeds, device, dtype)]
        if self.guidance_scale is not None:
            negative = self.negative_conditions
            found.append(conditions_of(negative, seeds, device, dtype, "negative_conditions"))
        return found

    @override
    def with_steps(self, steps: int) -> Self:
        return replace(self, steps=steps)

    @override
    def describe(self) -> dict[str, Any]:
        # A short name and the scheduler that it stands for are the same sampler.
        named = isinstance(self.scheduler, str)
        scheduler: Any = make_scheduler(self.scheduler) if named else self.scheduler
        described = {
            "scheduler": settings_of(scheduler),
            "shape": list(self.shape),
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "conditions": by_name(self.conditions),
            "negative_conditions": by_name(self.negative_conditions),
        }
        return plain_values(described)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
