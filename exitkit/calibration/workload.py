"""What policies are calibrated on: real runs, priced in MACs and measured against the full model.

A measurement runs the closed loop: what rows that leave early make of their trajectory is what the
next step sees. The reference is the full model on the same samples, run once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from exitkit.calibration.acting import acting
from exitkit.calibration.forecast import Forecast
from exitkit.calibration.recorders import GapRecorder, UncertaintyRecorder
from exitkit.calibration.sensitivity import sensitivity
from exitkit.errors import CalibrationError, ConfigError
from exitkit.execution.trace import Trace
from exitkit.model import ExitModels, Wrapped
from exitkit.modes.flags import evaluating
from exitkit.policies import Measurement, Policy, UncertaintyThreshold
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.network import placement
from exitkit.sampling.sampler import DELAY, SamplerBase


class Workload(ABC):
    """Samples that one policy after another is run on; the full model runs when it is made.

    Attributes:
        model: The wrapped model, whose own policy is put back after every run.
        unit: What its samples are called.
        history: All measurements so far, in order.
        reference: Outputs of the full model, with shape (n, ...).
        forecast: What the heads said along the full model's trajectories.
        timesteps: Timestep of each step of a trajectory; empty where there are none.
    """

    unit: ClassVar[str]

    def __init__(
        self,
        model: Wrapped,
        template: UncertaintyThreshold | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self.model, self.progress = model, progress
        self.history: list[Measurement] = []
        self._bar = tqdm(disable=not progress, unit=" runs", desc=f"{self.unit}: full model ")
        recorder = UncertaintyRecorder(template)
        self.reference, trace = self._run(recorder)
        heads = max(0.0, trace.cost - 1) / max(1, trace.exits)
        costs = [exit.cost + exit.index * heads for exit in model.exits]
        costs.append(1 + trace.exits * heads)
        self.forecast = Forecast(recorder.seen, costs, sum(call.rows for call in trace.calls))
        self.timesteps = _times(trace)

    @property
    def steps(self) -> int:
        """Steps of a trajectory, which not every sampler has as many of as asked for."""
        return len(self.timesteps)

    @property
    def carries(self) -> bool:
        """Whether exits lean on what earlier steps left behind."""
        return self.model.heads.kind.needs_trajectory

    @property
    def completes(self) -> bool:
        """Whether the model completes steps without the backbone, and has no exits at boundaries."""
        return self.model.heads.completion is not None

    def measure(self, policy: Policy) -> Measurement:
        """Runs a policy.

        Arguments:
            policy: The policy.

        Returns:
            Its cost and error; those of an equal policy that ran before, if there is one.
        """
        known = next((m for m in self.history if m.policy == policy), None)
        return self.measure_samples(policy)[0] if known is None else known

    def measure_samples(self, policy: Policy) -> tuple[Measurement, Tensor]:
        """Runs a policy, also if an equal one ran before.

        Arguments:
            policy: The policy.

        Returns:
            The measurement, and the error of each sample, with shape (n).
        """
        self._bar.set_description_str(f"{self.unit}: {str(policy):.60} ")
        outputs, trace = self._run(policy)
        errors = self.distance(outputs)
        error = float(errors.mean())
        measured = Measurement(policy, trace.cost, error, self.relative(error))
        self.history.append(measured)
        self._bar.set_postfix_str(f"cost {trace.cost:.4f}, error {error:.4g}")
        return measured, errors

    def observe(self, recorder: Policy) -> None:
        """Runs a policy that only looks; nothing is kept in the history.

        Arguments:
            recorder: The policy.
        """
        self._bar.set_description_str(f"{self.unit}: {recorder.name.replace('_', ' ')} ")
        self._run(recorder)

    def expect(self, runs: int) -> None:
        """Tells the progress bar how many runs are to come at most.

        Arguments:
            runs: Their number.
        """
        self._bar.total = self._bar.n + runs
        self._bar.refresh()

    def close(self, found: Policy | None = None) -> None:
        """Ends the progress bar.

        Arguments:
            found: The policy that the model shall be ready for; None leaves it as it was.
        """
        self._bar.total = self._bar.n  # a search may end before its bound
        self._bar.close()

    @cached_property
    def sensitivity(self) -> Tensor:
        """Error of the final sample per relative error of the prediction at each step, (S)."""
        raise ConfigError(f"There is no sensitivity by step on {self.unit}: they have no steps.")

    @abstractmethod
    def distance(self, outputs: Tensor) -> Tensor:
        """Error of each sample, with shape (n), of outputs with shape (n, ...)."""

    def relative(self, error: float) -> float | None:
        """A mean error in units of the samples' own spread, where that means something."""
        return None

    @abstractmethod
    def _collect(self) -> tuple[Tensor, Trace]:
        """Runs the model as it is: outputs, with shape (n, ...), and what was executed."""

    def _run(self, policy: Policy) -> tuple[Tensor, Trace]:
        with acting(self.model, policy):
            result = self._collect()
        self._bar.update()
        return result


class GenerationWorkload(Workload):
    """Trajectories of a sampler, judged by the root mean square difference of final samples."""

    unit = "trajectories"

    def __init__(
        self,
        model: Wrapped,
        sampler: SamplerBase,
        seeds: Sequence[int],
        template: UncertaintyThreshold | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self.sampler, self.seeds = sampler, tuple(seeds)
        super().__init__(model, template, progress=progress)
        self._spread = float(self.reference.double().std())

    @cached_property
    @override
    def sensitivity(self) -> Tensor:
        self._bar.set_description_str(f"{self.unit}: sensitivity by step ")
        return sensitivity(self.model, self.sampler, self.seeds[:8], progress=self.progress)

    @override
    def distance(self, outputs: Tensor) -> Tensor:
        return paired_distance(outputs, self.reference).double()

    @override
    def relative(self, error: float) -> float | None:
        return error / self._spread if self._spread > 0 else None

    def _collect(self) -> tuple[Tensor, Trace]:
        sample = self.sampler.run(self.model, self.seeds, progress=self.progress)
        assert sample.trace is not None
        return sample.samples, sample.trace


class ClassificationWorkload(Workload):
    """Batches of a classifier, judged by the share of predictions that change."""

    unit = "images"

    def __init__(
        self,
        model: Wrapped,
        loader: Iterable[Any],
        template: UncertaintyThreshold | None = None,
        *,
        progress: bool = False,
    ) -> None:
        if iter(loader) is loader:
            raise ConfigError(
                "calibrate reads the loader once a policy, but this one is used up after the first "
                f"({type(loader).__name__}). Pass a DataLoader or a list of batches."
            )
        if isinstance(model, ExitModels):
            raise ConfigError(
                f"calibrate: {', '.join(model)} are denoisers of a pipeline, and batches are for "
                "classifiers. Calibrate them on ek.PipelineSampler(pipe, calls)."
            )
        self.loader, self._classifier = loader, model
        super().__init__(model, template, progress=progress)

    @override
    def distance(self, outputs: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) != self.reference.argmax(dim=1)).double()

    def _collect(self) -> tuple[Tensor, Trace]:
        device, dtype = placement(self.model)
        outputs, traces = [], []
        batches = tqdm(
            self.loader,
            disable=not self.progress,
            unit="batch",
            desc="images",
            delay=DELAY,
            leave=None,
        )
        with torch.no_grad(), evaluating(self.model):
            for batch in batches:
                images = batch[0] if isinstance(batch, list | tuple) else batch
                output = self._classifier(images.to(device, dtype))
                outputs.append(self._classifier.prediction_of(output).cpu())
                traces.append(self._classifier.trace)
        if not traces:
            raise CalibrationError("There is nothing to calibrate on: the loader is empty.")
        return torch.cat(outputs), Trace.join(traces)


def exit_errors(workload: Workload) -> Tensor:
    """Measures how far each exit's prediction is from the full one, along the full model's trajectories.

    Arguments:
        workload: Trajectories; not of carried exits.

    Returns:
        Mean relative error by step and exit, with shape (S, K).
    """
    recorder = GapRecorder()
    workload.observe(recorder)
    by_step = [torch.cat(gaps).mean(dim=0) for _, gaps in sorted(recorder.gaps.items())]
    return torch.stack(by_step).double()


def _times(trace: Trace) -> tuple[float, ...]:
    """The timestep of each step of the trajectory; calls of one step share it."""
    by_step = {call.step: float(call.timestep) for call in reversed(trace.calls)}
    # A classifier has no timestep.
    return tuple(t for _, t in sorted(by_step.items()) if t == t)
