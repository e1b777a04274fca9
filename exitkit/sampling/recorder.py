"""Records what the full model sees and says in a sampler's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from exitkit.execution.recording import Recording
from exitkit.model import ExitModel
from exitkit.sampling.rollout import Rollout
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.spec import Plan


class RolloutRecorder:
    """Runs full models in a sampler's loop and keeps every evaluation, by model and branch of guidance.

    A branch is the place of a call within its step, its shape, and its plain arguments.

    Arguments:
        dtype: Dtype of what is kept; that of each tensor if None.
        hidden: Whether hidden states are kept.
    """

    def __init__(self, dtype: torch.dtype | None, hidden: bool) -> None:
        self._dtype, self._hidden = dtype, hidden
        self._branches: dict[tuple[object, ...], _Kept] = {}
        self._calls: dict[int, int] = {}  # of this step, by model
        self._announced = False
        self._last: dict[int, Tensor | None] = {}

    def start(self, seeds: Tensor) -> None:
        """A batch begins."""
        self._branches, self._calls, self._last = {}, {}, {}
        self._announced = False

    def next_call(self) -> None:
        """The calls that follow are branches of one further evaluation."""
        self._announced, self._calls = True, {}

    def call(
        self,
        model: ExitModel,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        through: Callable[..., Any] | None = None,
    ) -> Any:
        """Runs the full model, keeps what it sees, and returns its output."""
        runs = model._executor
        recording = runs.analyst.record(runs.bind(args, kwargs), through)
        given = bind(signature_of(through or model.backbone.forward), args, kwargs)
        if not self._announced:
            self._tell(model, recording.timestep)
        number = self._calls.get(id(model), 0)
        self._calls[id(model)] = number + 1
        plain: Any = runs.reader.form(given, recording.noisy)[0]
        told = tuple(entry for entry in plain if entry[0] != model.plan.timestep)
        branch = (id(model), number, recording.noisy.shape, told)
        if branch not in self._branches:
            parameter = next(p for p in model.parameters() if p.is_floating_point())
            self._branches[branch] = _Kept(
                self._dtype, self._hidden, given, model.plan, parameter.dtype
            )
        self._branches[branch].add(given, recording)
        return recording.output

    def _tell(self, model: ExitModel, timestep: Tensor | None) -> None:
        """A loop of the user's announces nothing: equal timesteps are branches of one evaluation."""
        last = self._last.get(id(model))
        same = timestep is not None and last is not None and timestep.shape == last.shape
        if not (same and torch.equal(timestep, last)):  # type: ignore[arg-type]
            self._calls.pop(id(model), None)
        self._last[id(model)] = timestep

    def rollouts(self, model: ExitModel | None = None) -> list[Rollout]:
        """The rollout of each branch of the batch.

        Arguments:
            model: Whose; of all if None.
        """
        chosen = (k for key, k in self._branches.items() if model is None or key[0] == id(model))
        return [kept.rollout() for kept in chosen]


class _Kept:
    """Evaluations of one branch; what several exits share is kept once."""

    def __init__(
        self, dtype: torch.dtype | None, hidden: bool, given: Bound, plan: Plan, worked: torch.dtype
    ) -> None:
        self.dtype, self.keeps_hidden = dtype, hidden
        self.plan, self.worked = plan, worked
        # Copies: loops that work in place would change what is kept.
        self.given = given.replaced({path: tensor.clone() for path, tensor in given.tensors()})
        own = {plan.noisy, plan.timestep}
        others = self.given.tensors()
        self._first = {p: t for p, t in others if not {p, p.split("[")[0]} & own}
        self._same: dict[str, tuple[Tensor, int]] = {}
        self.moving: dict[str, list[Tensor]] = {}
        self.x: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.t_normalized: list[Tensor] = []
        self.prediction: list[Tensor] = []
        self.hidden: list[dict[int, Tensor]] = []
        self.landing: list[dict[int, Tensor]] = []

    def add(self, given: Bound, recording: Recording) -> None:
        self._keep_moving(given)
        self.x.append(self._narrow(recording.noisy))
        name = self.plan.timestep
        time = given.at(name) if name is not None else None
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

    def _keep_moving(self, given: Bound) -> None:
        """Keeps arguments that are not those of the first evaluation."""
        now, before = dict(given.tensors()), len(self.x)
        for path, first in self._first.items():
            tensor = now.get(path, first)
            same = self._same.get(path)
            known = same is not None and same[0] is tensor and same[1] == _version(tensor)
            if path not in self.moving and not known:
                if tensor.shape == first.shape and torch.equal(tensor, first):
                    self._same[path] = (tensor, _version(tensor))
                    continue
                self.moving[path] = [first] * before
            if path in self.moving:
                self.moving[path].append(tensor.clone())

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
            {path: tuple(tensors) for path, tensors in self.moving.items()},
        )


def _version(tensor: Tensor) -> int:
    """Changes whenever a tensor is changed in place; nobody counts for inference tensors."""
    return -1 if tensor.is_inference() else tensor._version


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
