"""A recorded trajectory of the full model: what it was given, what it said, what went through it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exitkit.execution.replay import leaf_of, taken
from exitkit.execution.rows import rows_back
from exitkit.surgery.inputs import Bound, Inputs
from exitkit.surgery.spec import Plan


@dataclass(frozen=True)
class Rollout:
    """One branch of a batch of trajectories, S evaluations of B rows.

    Attributes:
        x: Noisy inputs, rows first, with shape (S, B, ...).
        timesteps: Timesteps as they were given, with shape (S, ...).
        t_normalized: The same on the scale 0..1000, with shape (S,).
        prediction: What the full model predicted, with shape (S, B, ...).
        given: Arguments of the first evaluation by name.
        plan: Tells where rows are in the arguments.
        hidden: Hidden state at each exit, with shape (S, B, ...), by exit; empty if not kept.
        landing: Hidden state where each exit lands, with shape (S, B, ...), by exit; empty if not
            kept.
        dtype: Dtype in which the backbone worked; what is stored may be narrower.
        moving: Arguments beside noisy input and timestep that change from evaluation to evaluation, by
            path: one tensor an evaluation.
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
    moving: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

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
        bound = taken(self.given, plan, rows, self.rows) if plan.batched else self.given
        if self.moving:
            bound = bound.replaced(self._moved(steps.tolist(), rows))
        noisy = self.take(self.x, steps, rows)
        if plan.noisy_leaf.listed:
            entries = type(self.given.values[plan.noisy])(noisy.unbind(0))
            bound = replace(bound, values={**bound.values, plan.noisy: entries})
        else:
            bound = bound.replaced({plan.noisy: rows_back(noisy, plan.noisy_leaf)})
        if plan.timestep is not None and bound.at(plan.timestep) is not None:
            bound = bound.replaced({plan.timestep: self._times(steps, rows)})
        return _by_name(bound)

    def _moved(self, steps: list[int], rows: Tensor) -> dict[str, Tensor]:
        """Arguments that change from evaluation to evaluation, at (step, row) pairs."""
        found = {}
        for path, values in self.moving.items():
            if not self.plan.batched:
                found[path] = values[steps[0]]
                continue
            pairs = zip(steps, rows.split(1), strict=True)
            calls = [
                taken(Bound({path: values[step]}, None), self.plan, row, self.rows)
                for step, row in pairs
            ]
            leaf = leaf_of(path, values[0], self.plan, self.rows)
            pieces = [call.values[path] for call in calls]
            found[path] = pieces[0] if leaf is None else torch.cat(pieces, dim=leaf.axis or 0)
        return found

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
