"""The sampling loop: one batch from noise to samples. Generated, recorded and measured alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ExitKitError, NonFiniteError, ShapeError
from exitkit.execution.trajectory import trajectory_of
from exitkit.sampling.network import call_form, example_of, name_of
from exitkit.sampling.sample import Edit, Record
from exitkit.sampling.solvers import Solver, draw_noise, seeded


@dataclass
class Loop:
    """One batch of samples.

    Attributes:
        model: A wrapped model, or whatever is called with a noisy input and a timestep.
        solver: The solver of this batch.
        branches: Conditions of the calls of one evaluation: the conditional one first.
        scale: negative + scale * (conditional - negative), where there are two branches.
        seeds: Seeds of the rows, with shape (B,).
        dtype: What the network computes in. The solver's arithmetic stays in float32 where that is
            smaller.
        edit: Changes predictions, or None.
        record: Runs the full model and keeps what it sees, or None.
    """

    model: Callable[..., Any]
    solver: Solver
    branches: list[dict[str, Any]]
    scale: float
    seeds: Tensor
    dtype: torch.dtype
    edit: Edit | None = None
    record: Record | None = None

    def run(self, shape: tuple[int, ...], device: torch.device, tick: Callable[[], Any]) -> Tensor:
        """Runs all steps.

        Arguments:
            shape: Shape of one sample.
            device: Where the states live.
            tick: Called after each evaluation.

        Returns:
            The samples, with shape (B, *shape).

        Raises:
            ShapeError: If a prediction has the wrong shape.
            NonFiniteError: If one is NaN or infinite.
        """
        generators = seeded(self.seeds.tolist())
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        x = self.solver.start(draw_noise(shape, generators).to(device, exact))
        form, run = call_form(self.model), self.model
        if self.record is not None:
            run = partial(_recorded, self.record, self.model)
        before: Tensor | None = None
        step = -1
        for call, timestep in enumerate(self.solver.timesteps):
            # Second-order solvers evaluate twice at one timestep, within one step.
            begins = before is None or bool(timestep != before)
            step, before = step + begins, timestep
            self._announce(begins)
            fed = self.solver.model_input(x, call).to(self.dtype)
            times = timestep.to(device).expand(len(x))
            outputs = []
            for conditions in self.branches:
                given = form.arguments(fed, times, **conditions)
                try:
                    output = run(*given.args, **given.kwargs)
                except (RuntimeError, TypeError, ValueError) as error:
                    self._explain(error, fed, shape, conditions)
                    raise
                prediction = form.prediction(output, fed)
                self._check(prediction, fed, call)
                outputs.append(self._edited(prediction.to(exact), step, shape[0]))
            x = self.solver.step(self._guided(outputs, shape[0]), x, call, generators)
            tick()
        return x

    def _explain(
        self, error: Exception, fed: Tensor, shape: tuple[int, ...], conditions: dict[str, Any]
    ) -> None:
        """Adds what the network was called with to an error of its own."""
        if not isinstance(error, ExitKitError):
            error.add_note(
                f"{name_of(self.model)} was called with noisy inputs of shape {tuple(fed.shape)} and the "
                f"conditions {', '.join(conditions) or 'none'}: Sampler(shape={shape}) is the shape of one "
                "sample, without the batch, and conditions= names all that it needs beside."
                + example_of(self.model)
            )

    def _announce(self, step: bool) -> None:
        trajectory = trajectory_of(self.model)
        if trajectory is not None and step:
            trajectory.next_step()
        if self.record is not None:
            self.record.next_call()

    def _edited(self, prediction: Tensor, step: int, channels: int) -> Tensor:
        if not self.solver.learned_variance:
            prediction = prediction[:, :channels]
        return prediction if self.edit is None else self.edit(step, self.seeds, prediction)

    def _guided(self, outputs: list[Tensor], channels: int) -> Tensor:
        """Guides with the branches; a learned variance is that of the conditional one."""
        mean = outputs[0][:, :channels]
        if len(outputs) == 2:
            negative = outputs[1][:, :channels]
            mean = negative + self.scale * (mean - negative)
        return torch.cat([mean, outputs[0][:, channels:]], dim=1)

    def _check(self, prediction: Tensor, fed: Tensor, call: int) -> None:
        name, want, have = name_of(self.model), tuple(fed.shape), tuple(prediction.shape)
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


def _recorded(record: Record, model: Any, *args: Any, **kwargs: Any) -> Any:
    return record.call(model, args, kwargs)
