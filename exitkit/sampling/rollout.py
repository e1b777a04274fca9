"""A recorded trajectory of the full model: what it was given, what it said, what went through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from exitkit.execution.recording import Recording
from exitkit.execution.replay import chosen
from exitkit.execution.rows import rows_back
from exitkit.model import ExitModel
from exitkit.surgery.inputs import Bound, Inputs, bind, signature_of
from exitkit.surgery.spec import Plan


@dataclass(frozen=True)
class Rollout:
    """One branch of a batch of trajectories, S evaluations of B rows.

    Attributes:
        x: Noisy inputs, rows first, with shape (S, B, ...).
        timesteps: Timesteps as they were given, with shape (S, ...).
        t_normalized: The same on the scale 0..1000, with shape (S,).
        prediction: What the full model predicted, with shape (S, B, ...).
        given: Arguments of the first evaluation by name; all but noisy input and timestep stay.
        plan: Tells where rows are in the arguments.
        hidden: Hidden state at each exit, with shape (S, B, ...), by exit; empty if not kept.
        landing: Hidden state where each exit lands, with shape (S, B, ...), by exit; empty if not
            kept.
        dtype: Dtype in which the backbone worked; what is stored may be narrower.
    """

    x: Tensor
    timesteps: Tensor
    t_normalized: Tensor
    prediction: Tensor
    given: Bound
    plan: Plan
    hidden: dict[int, Tensor] = field(default_factory=dict)
    landing: dict[int, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @property
    def steps(self) -> int:
        """Number of evaluations S."""
        return self.x.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.x.shape[1]

    def at(self, steps: Tensor, rows: Tensor) -> Inputs:
        """The arguments of some (step, row) pairs.

        Arguments:
            steps: Steps, with shape (n,).
            rows: Rows, with shape (n,).

        Returns:
            One call of the backbone, of n rows.
        """
        plan = self.plan
        bound = chosen(self.given, plan, rows, self.rows) if plan.batched else self.given
        noisy = self.take(self.x, steps, rows)
        if plan.noisy_leaf.listed:
            entries = type(self.given.values[plan.noisy])(noisy.unbind(0))
            bound = replace(bound, values={**bound.values, plan.noisy: entries})
        else:
            bound = bound.replaced({plan.noisy: rows_back(noisy, plan.noisy_leaf)})
        if plan.timestep is not None and plan.timestep in bound.values:
            times = self._times(steps, rows)
            bound = replace(bound, values={**bound.values, plan.timestep: times})
        return _by_name(bound)

    def _times(self, steps: Tensor, rows: Tensor) -> Tensor:
        """Timesteps of (step, row) pairs, in the form in which the backbone takes them."""
        if not self.plan.batched:
            return self.timesteps[int(steps[0])]
        if self.timesteps.ndim > 1 and self.timesteps.shape[1] == self.rows:
            return self.timesteps[steps, rows]
        return (
            self.timesteps.flatten(1)[steps, 0]
            if self.timesteps.ndim > 1
            else self.timesteps[steps]
        )

    def each(self, steps: Tensor, rows: Tensor) -> tuple[Inputs, ...]:
        """The calls of some (step, row) pairs: one for all, or one for each without rows."""
        if self.plan.batched:
            return (self.at(steps, rows),)
        return tuple(map(self.at, steps.split(1), rows.split(1)))

    def take(self, stored: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
        """Entries of a stored tensor at (step, row) pairs, in the backbone's dtype, (n, ...)."""
        return stored[steps, rows].to(self.dtype)


def _by_name(bound: Bound) -> Inputs:
    """Arguments by name where the backbone takes them so: no place has to be known then."""
    args, kwargs = bound.split()
    if bound.signature is None:
        return Inputs(*args, **kwargs)
    parameters = list(bound.signature.parameters.values())[: len(args)]
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters) or len(parameters) < len(
        args
    ):
        return Inputs(*args, **kwargs)
    return Inputs(**dict(zip((p.name for p in parameters), args, strict=True)), **kwargs)


class RolloutRecorder:
    """Runs the full model in a sampler's loop and keeps every evaluation, by branch of guidance.

    Arguments:
        dtype: Dtype of what is kept; that of each tensor if None.
        hidden: Whether hidden states are kept.
    """

    def __init__(self, dtype: torch.dtype | None, hidden: bool) -> None:
        self._dtype, self._hidden = dtype, hidden
        self._branches: list[_Kept] = []
        self._branch, self._announced = -1, False
        self._last: Tensor | None = None

    def start(self, seeds: Tensor) -> None:
        """A batch begins."""
        self._branches, self._branch, self._last = [], -1, None

    def next_call(self) -> None:
        """The calls that follow are branches of one further evaluation."""
        self._announced, self._branch = True, -1

    def call(self, model: ExitModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the full model, keeps what it sees, and returns its output."""
        recording = model.record(*args, **kwargs)
        given = bind(signature_of(model.backbone.forward), args, kwargs)
        if not self._announced:
            self._tell(recording.timestep)
        self._branch += 1
        if self._branch == len(self._branches):
            parameter = next(p for p in model.parameters() if p.is_floating_point())
            self._branches.append(
                _Kept(self._dtype, self._hidden, given, model.plan, parameter.dtype)
            )
        self._branches[self._branch].add(given, recording)
        return recording.output

    def _tell(self, timestep: Tensor | None) -> None:
        """A loop of the user's announces nothing: equal timesteps are branches of one evaluation."""
        same = timestep is not None and self._last is not None
        if not (same and torch.equal(timestep, self._last)):  # type: ignore[arg-type]
            self._branch = -1
        self._last = timestep

    def rollouts(self) -> list[Rollout]:
        """The rollout of each branch of the batch."""
        return [kept.rollout() for kept in self._branches]


class _Kept:
    """Evaluations of one branch; what several exits share is kept once."""

    def __init__(
        self, dtype: torch.dtype | None, hidden: bool, given: Bound, plan: Plan, worked: torch.dtype
    ) -> None:
        self.dtype, self.keeps_hidden = dtype, hidden
        self.given, self.plan, self.worked = given, plan, worked
        self.x: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.t_normalized: list[Tensor] = []
        self.prediction: list[Tensor] = []
        self.hidden: list[dict[int, Tensor]] = []
        self.landing: list[dict[int, Tensor]] = []

    def add(self, given: Bound, recording: Recording) -> None:
        self.x.append(self._narrow(recording.noisy))
        name = self.plan.timestep
        time = given.values.get(name) if name is not None else None
        device = recording.noisy.device
        self.timesteps.append(torch.as_tensor(0.0 if time is None else time, device=device).clone())
        t = recording.timestep
        self.t_normalized.append(
            t.flatten()[0] if t is not None else torch.zeros((), device=device)
        )
        self.prediction.append(self._narrow(recording.prediction))
        if self.keeps_hidden:
            known: dict[int, Tensor] = {}
            for kept, values in (
                (self.hidden, recording.hidden),
                (self.landing, recording.landing),
            ):
                kept.append({k: self._once(known, v) for k, v in values.items()})

    def _once(self, known: dict[int, Tensor], tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = self._narrow(tensor)
        return known[id(tensor)]

    def _narrow(self, tensor: Tensor) -> Tensor:
        # A copy: blocks and samplers that work in place would change what is kept.
        return tensor.detach().to(self.dtype or tensor.dtype, copy=True)

    def rollout(self) -> Rollout:
        stacked: dict[tuple[int, ...], Tensor] = {}
        return Rollout(
            torch.stack(self.x),
            torch.stack(self.timesteps),
            torch.stack(self.t_normalized).float(),
            torch.stack(self.prediction),
            self.given,
            self.plan,
            _by_exit(self.hidden, stacked),
            _by_exit(self.landing, stacked),
            self.worked,
        )


def _by_exit(
    kept: list[Mapping[int, Tensor]] | list[dict[int, Tensor]],
    stacked: dict[tuple[int, ...], Tensor],
) -> dict[int, Tensor]:
    """Stacks what was kept of each exit; equal stacks are made once."""
    made = {}
    for k in kept[0] if kept else ():
        pieces = [step[k] for step in kept]
        key = tuple(map(id, pieces))
        if key not in stacked:
            stacked[key] = torch.stack(pieces)
        made[k] = stacked[key]
    return made
