r"""A router in the manner of Learning-to-Cache: one learned choice a step, the same for all samples.

For each step s it learns logits :math:`\beta_{s,d}` over the exits and the end, by gradient descent on

.. math:: \Big\|\sum_d p_{s,d}\, y_{s,d} - y_{s,N}\Big\|^2 + \lambda \sum_d p_{s,d}\, c_d,
    \qquad p_s = softmax(\beta_s)

with everything else frozen; the penalty :math:`\lambda` trades error for cost. The article routes single
sub-layers in every other step; here the choice is how many blocks run, and every other step is a full
one where exits lean on full steps (carried exits).

References:
    | Learning-to-Cache: Accelerating Diffusion Transformer via Layer Caching
    | (Ma et al., 2024), https://arxiv.org/abs/2406.01733
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.calibration.paths.base import PolicyPath, register_path
from exitkit.calibration.recorders import PredictionRecorder
from exitkit.calibration.workload import Workload
from exitkit.policies import FULL, StepSchedule

LEARNING_STEPS = 300
_RATE = 0.05

PENALTIES = (1e-9, 1e3)
"""From a penalty that no cost counts under to one where cost decides alone."""


def predictions_by_step(workload: Workload) -> list[tuple[Tensor, Tensor]]:
    """Predictions of every exit along the full model's trajectories.

    Arguments:
        workload: What policies are measured on.

    Returns:
        For each step predictions (B, K, ...) and the full model's (B, ...).
    """
    recorder = PredictionRecorder()
    workload.observe(recorder)
    return [
        (torch.cat([exits for exits, _ in parts]), torch.cat([full for _, full in parts]))
        for _, parts in sorted(recorder.seen.items())
    ]


@dataclass(frozen=True, eq=False)
class RouterPath(PolicyPath):
    """Learned routers under a penalty on cost that grows by decades.

    Attributes:
        inner: Inner products of the differences of all choices to the full model, of each step over the
            mean square of the full prediction, with shape (S, K + 1, K + 1).
        costs: Cost of each choice, with shape (K + 1).
        every_other: Keep every other step a full one, the first among them.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    inner: Tensor
    costs: Tensor
    every_other: bool
    tolerance: float = 0.02

    @override
    def at(self, position: float) -> StepSchedule:
        if position <= 0:
            return StepSchedule((FULL,) * len(self.inner))
        low, high = PENALTIES
        return self.learned(low * (high / low) ** position)

    def learned(self, penalty: float) -> StepSchedule:
        r"""Learns which exit each step takes.

        Arguments:
            penalty: :math:`\lambda`, relative to the mean square of the full model's prediction.

        Returns:
            The schedule of the most probable choices.
        """
        with torch.enable_grad():
            beta = torch.zeros(self.inner.shape[:2], dtype=self.inner.dtype, requires_grad=True)
            optimizer = torch.optim.Adam([beta], lr=_RATE)
            for _ in range(LEARNING_STEPS):
                p = beta.softmax(dim=1)
                error = torch.einsum("sd,sde,se->s", p, self.inner, p)
                loss = (error + penalty * (p @ self.costs)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        last = len(self.costs) - 1
        per_step = [
            FULL if d == last or (self.every_other and s % 2 == 0) else d + 1
            for s, d in enumerate(beta.detach().argmax(dim=1).tolist())
        ]
        return StepSchedule(tuple(per_step))

    def __str__(self) -> str:
        full = " with every other step a full one" if self.every_other else ""
        return f"a learned router{full}"


def router_path(
    steps: Sequence[tuple[Tensor, Tensor]], costs: Sequence[float], *, every_other: bool
) -> RouterPath:
    """The path over what exits predict.

    Arguments:
        steps: For each step predictions (B, K, ...) and the full model's (B, ...).
        costs: Cost of each exit, K values.
        every_other: As in `RouterPath`.

    Returns:
        The path.
    """
    inner = torch.stack([_inner(exits, full) for exits, full in steps])
    return RouterPath(inner, torch.tensor([*costs, 1.0], dtype=inner.dtype), every_other)


def _inner(exits: Tensor, full: Tensor) -> Tensor:
    difference = (exits - full[:, None]).double().flatten(2)
    # A choice that rows may not take is as bad as saying nothing.
    difference = torch.where(difference.isnan(), full.double().flatten(1)[:, None], difference)
    choices = difference.shape[1]
    flat = difference.transpose(0, 1).reshape(choices, -1)
    inner = torch.zeros(choices + 1, choices + 1, dtype=torch.float64)
    inner[:-1, :-1] = flat @ flat.T / flat.shape[1]
    return inner / full.double().square().mean().clamp(min=1e-12)


@register_path("router", needs_steps=True)
def router(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """Routers learned from what every exit predicts along the full model's trajectories.

    Arguments:
        workload: What policies are measured on.
        budget: Not needed.

    Returns:
        One path.
    """
    costs = [exit.cost for exit in workload.model.exits]
    return [router_path(predictions_by_step(workload), costs, every_other=workload.carries)]
