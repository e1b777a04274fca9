"""Real runs of a model under one policy after another: what each costs, and how far it strays.

A trial runs the closed loop: rows that leave early walk on from what they made of it. The reference
is the full model on the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exitkit.calibration.forecast import Forecast, Recorder
from exitkit.errors import CalibrationError, ConfigError
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import Policy, UncertaintyThreshold
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.network import placement
from exitkit.sampling.positions import sampler_from

Collect = Callable[[], tuple[Tensor, Trace]]
"""Runs the model as it is: outputs, with shape (n, ...), and what was executed."""


@contextmanager
def acting(model: ExitModel, policy: Policy) -> Iterator[None]:
    """Gives a model another policy for a while.

    Arguments:
        model: The wrapped model.
        policy: The policy meanwhile.
    """
    before = model.policy
    model.policy = policy
    try:
        yield
    finally:
        model.policy = before


@dataclass(frozen=True)
class Trial:
    """One policy, run for real.

    Attributes:
        policy: The policy.
        cost: Executed MACs / full MACs, heads included.
        error: Mean distance of the outputs to those of the full model.
    """

    policy: Policy
    cost: float
    error: float


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        budget: Cost to meet, or None.
        max_error: Largest error, or None.
        tolerance: How far the cost may be from the budget, relative to it.
    """

    budget: float | None
    max_error: float | None
    tolerance: float

    @property
    def limit(self) -> float:
        """The largest cost that still meets the budget."""
        return (self.budget or 0.0) * (1 + self.tolerance)

    def meets(self, trial: Trial) -> bool:
        """Whether a cost is as near to the budget as asked for."""
        budget = self.budget or 0.0
        return abs(trial.cost - budget) <= self.tolerance * budget


@dataclass
class Trials:
    """Runs policies on the same inputs and keeps the books.

    Attributes:
        model: The wrapped model.
        collect: Runs it.
        distance: (outputs, reference) to one distance a row, with shape (n).
        history: All trials so far.
        reference: Outputs of the full model, with shape (n, ...).
        forecast: What the heads said along the full model's way.
    """

    model: ExitModel
    collect: Collect
    distance: Callable[[Tensor, Tensor], Tensor]
    history: list[Trial] = field(default_factory=list)
    reference: Tensor = field(init=False)
    forecast: Forecast = field(init=False)

    def begin(self, template: UncertaintyThreshold | None = None) -> Trace:
        """Runs the full model once.

        Arguments:
            template: If given, its uncertainties are read on the way.

        Returns:
            What was executed.
        """
        recorder = Recorder(template)
        with acting(self.model, recorder):
            self.reference, trace = self.collect()
        heads = max(0.0, trace.cost - 1) / trace.exits
        costs = [e.cost + e.index * heads for e in self.model.exits]
        costs.append(1 + trace.exits * heads)
        self.forecast = Forecast(recorder.seen, costs, trace.depth.numel())
        return trace

    def observe(self, watcher: Policy) -> None:
        """Runs a policy that only looks; nothing is booked.

        Arguments:
            watcher: The policy.
        """
        with acting(self.model, watcher):
            self.collect()

    def run(self, policy: Policy) -> Trial:
        """Runs a policy.

        Arguments:
            policy: The policy.

        Returns:
            Its cost and error; those of an equal policy that ran before, if there is one.
        """
        for trial in self.history:
            if trial.policy == policy:
                return trial
        return self.measure(policy)[0]

    def measure(self, policy: Policy) -> tuple[Trial, Tensor]:
        """Runs a policy, also if an equal one ran before.

        Arguments:
            policy: The policy.

        Returns:
            Its cost and error, and the distance of each row, with shape (n).
        """
        with acting(self.model, policy):
            outputs, trace = self.collect()
        distances = self.distance(outputs, self.reference)
        self.history.append(Trial(policy, trace.cost, float(distances.mean())))
        return self.history[-1], distances


def generation_trials(
    model: ExitModel, scheduler: Any, shape: Sequence[int], **options: Any
) -> Trials:
    """Trials by generation, judged by the root mean square difference of final images.

    Arguments:
        model: The wrapped model.
        scheduler: As in `generate`.
        shape: Shape of one sample.
        options: Further arguments of `generate`.

    Returns:
        The trials.
    """
    sampler, seeds = sampler_from(scheduler, shape, options)

    def collect() -> tuple[Tensor, Trace]:
        sample = sampler.run(model, seeds)
        assert sample.trace is not None
        return sample.samples, sample.trace

    return Trials(model, collect, paired_distance)


def images_in(loader: Iterable[Any]) -> int:
    """Number of images of all batches.

    Arguments:
        loader: As in `loader_trials`.

    Returns:
        The number.
    """
    return sum(len(b[0] if isinstance(b, list | tuple) else b) for b in loader)


def loader_trials(model: ExitModel, loader: Iterable[Any]) -> Trials:
    """Trials on batches of a classifier, judged by the share of predictions that change.

    Arguments:
        model: The wrapped model.
        loader: Yields tensors of images, or tuples and lists that begin with one.

    Returns:
        The trials.

    Raises:
        ConfigError: If the loader can be read only once.
    """
    if iter(loader) is loader:
        raise ConfigError(
            "calibrate reads the loader once a trial, but this one is used up after the first "
            f"({type(loader).__name__}). Pass a DataLoader or a list of batches."
        )
    device, dtype = placement(model)

    def collect() -> tuple[Tensor, Trace]:
        outputs, traces = [], []
        flags = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                for batch in loader:
                    images = batch[0] if isinstance(batch, list | tuple) else batch
                    outputs.append(model.prediction_of(model(images.to(device, dtype))).cpu())
                    traces.append(model.trace)
        finally:
            for module, training in flags.items():
                module.training = training
        if not traces:
            raise CalibrationError("There is nothing to calibrate on: the loader is empty.")
        return torch.cat(outputs), Trace.join(traces)

    def distance(outputs: Tensor, reference: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) != reference.argmax(dim=1)).double()

    return Trials(model, collect, distance)
