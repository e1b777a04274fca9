"""What is kept of a walk: a batch of full trajectories, with the hidden states at exits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from exitkit.execution.calls import CallForm
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.spec import Plan
from exitkit.training.batches import Example

Calling = Callable[[Tensor, Tensor, dict[str, Any]], Inputs]
"""How a model is called: noisy input (B, ...), timesteps (B,) and conditions to its arguments."""


def call_by_name(x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Inputs:
    """The usual call, `model(x, t, **conditions)`."""
    return Inputs(x, t, **conditions)


def call_by_form(form: CallForm, x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Inputs:
    """The call of a planned backbone."""
    return form.arguments(x, t, **conditions)


def usual_call(plan: Plan, forward: Callable[..., Any]) -> Calling:
    """How a backbone is called, by what its plan knows."""
    return partial(call_by_form, CallForm.of(plan, forward))


class Recorded(Protocol):
    """What `model.record` returns, as far as a walk keeps it."""

    @property
    def prediction(self) -> Tensor:
        """Prediction of the full model, (B, ...)."""

    @property
    def timestep(self) -> Tensor | None:
        """Timestep of each row on the scale 0..1000, (B,)."""

    @property
    def hidden(self) -> Mapping[int, Tensor]:
        """Hidden state at each exit, (B, ...)."""

    @property
    def landing(self) -> Mapping[int, Tensor]:
        """Hidden state where each exit lands, (B, ...)."""


@dataclass(frozen=True)
class Rollout:
    """A batch of full trajectories, S steps of B rows.

    Attributes:
        x: What the backbone was given, (S, B, *shape).
        timesteps: The timesteps it was given, (S,).
        levels: The same on the scale 0..1000, (S,).
        prediction: What it predicted, (S, B, *output).
        inputs: Keyword arguments of every step.
        hidden: Hidden state at each exit, (S, B, ...), by exit; empty if not kept.
        landing: Hidden state where each exit lands, (S, B, ...), by exit; empty if not kept.
        dtype: Dtype in which the backbone worked; what is stored may be narrower.
        call: How the model is called.
        batched: Whether the model has rows; if not, B is 1 and `inputs` are those of its one row.
    """

    x: Tensor
    timesteps: Tensor
    levels: Tensor
    prediction: Tensor
    inputs: dict[str, Any] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    landing: dict[int, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    call: Calling = call_by_name
    batched: bool = True

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return self.x.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.x.shape[1]

    def at(self, steps: Tensor, rows: Tensor) -> Example:
        """The forwards of some (step, row) pairs.

        Arguments:
            steps: Steps, (n,).
            rows: Rows, (n,).

        Returns:
            The example; its target is None, the full model itself.
        """
        kwargs = {
            name: value[rows]
            if isinstance(value, Tensor) and value.dim() and self.batched
            else value
            for name, value in self.inputs.items()
        }
        given = self.call(self.take(self.x, steps, rows), self.timesteps[steps], kwargs)
        return Example(given.args, given.kwargs)

    def each(self, steps: Tensor, rows: Tensor) -> tuple[Example, ...]:
        """The forwards of some (step, row) pairs: one for all, or one for each without rows."""
        if self.batched:
            return (self.at(steps, rows),)
        return tuple(map(self.at, steps.split(1), rows.split(1)))

    def take(self, stored: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
        """Entries of a stored tensor at (step, row) pairs, in the backbone's dtype, (n, ...)."""
        return stored[steps, rows].to(self.dtype)


class RolloutRecorder:
    """Collects the steps of a walk; what several exits share is kept once.

    Arguments:
        dtype: Dtype of what is kept; that of each tensor if None.
        hidden: Whether hidden states are kept.
    """

    def __init__(self, dtype: torch.dtype | None, hidden: bool) -> None:
        self.dtype, self.keeps_hidden = dtype, hidden
        self.x: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.levels: list[Tensor] = []
        self.prediction: list[Tensor] = []
        self.hidden: list[dict[int, Tensor]] = []
        self.landing: list[dict[int, Tensor]] = []

    def add(self, x: Tensor, t: Tensor, recording: Recorded) -> None:
        """Takes in a step: what the model was given, its timestep, and its recording."""
        self.x.append(self._narrow(x))
        self.timesteps.append(t)
        level = recording.timestep
        self.levels.append(level.flatten()[0] if level is not None else torch.zeros(()))
        self.prediction.append(self._narrow(recording.prediction))
        if self.keeps_hidden:
            known: dict[int, Tensor] = {}
            for kept, values in (
                (self.hidden, recording.hidden),
                (self.landing, recording.landing),
            ):
                for v in values.values():
                    if id(v) not in known:
                        known[id(v)] = self._narrow(v)
                kept.append({k: known[id(v)] for k, v in values.items()})

    def walk(self, inputs: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Rollout:
        """Makes the walk of all steps that were taken in."""
        stacked: dict[tuple[int, ...], Tensor] = {}

        def by_exit(kept: list[dict[int, Tensor]]) -> dict[int, Tensor]:
            made = {}
            for k in kept[0] if kept else ():
                pieces = [step[k] for step in kept]
                key = tuple(map(id, pieces))
                if key not in stacked:
                    stacked[key] = torch.stack(pieces)
                made[k] = stacked[key]
            return made

        return Rollout(
            torch.stack(self.x),
            torch.stack(self.timesteps).to(device),
            torch.stack(self.levels).to(device).float(),
            torch.stack(self.prediction),
            inputs,
            by_exit(self.hidden),
            by_exit(self.landing),
            dtype,
        )

    def _narrow(self, tensor: Tensor) -> Tensor:
        # A copy: blocks and samplers that work in place would change what is kept.
        return tensor.detach().to(self.dtype or tensor.dtype, copy=True)
