r"""A router in the manner of Learning-to-Cache: one learned choice a step, the same for all samples.

For each step s it learns logits :math:`\beta_{s,d}` over the exits and the end, by gradient descent on

.. math:: \Big\|\sum_d p_{s,d}\, y_{s,d} - y_{s,N}\Big\|^2 + \lambda \sum_d p_{s,d}\, c_d,
    \qquad p_s = softmax(\beta_s)

with everything else frozen; :math:`\lambda` trades error for cost. The article routes single
sub-layers in every other step; here the choice is how many blocks run, and every other step is a full
one where exits lean on full steps (carried exits).

References:
    | Learning-to-Cache: Accelerating Diffusion Transformer via Layer Caching
    | (Ma et al., 2024), https://arxiv.org/abs/2406.01733
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.calibration.schedules import Setting
from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError
from exitkit.policies import FULL, ExitRule, Signals, StepSchedule

LEARNING_STEPS = 300
_RATE = 0.05


@dataclass(frozen=True)
class Watcher(ExitRule):
    """Runs everything to the end and writes down what every exit would have predicted.

    Attributes:
        seen: For each timestep: predictions (B, K, ...) and the full model's (B, ...), on the CPU.
    """

    seen: dict[float, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    name: ClassVar[str] = "watcher"
    needs: ClassVar[frozenset[str]] = frozenset({"oracle", "state"})

    def decide(self, signals: Signals) -> Tensor:
        """Lets nobody leave.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).
        """
        if signals.exit == 1:
            exits, full = signals.predictions()
            entry = (exits.detach().float().cpu(), full.detach().float().cpu())
            self.seen.setdefault(float(signals.timestep[0]), []).append(entry)
        return torch.zeros_like(signals.rows, dtype=torch.bool)


def watch(trials: Trials) -> list[tuple[Tensor, Tensor]]:
    """Predictions of every exit along the full model's way.

    Arguments:
        trials: Begun.

    Returns:
        For each step predictions (B, K, ...) and the full model's (B, ...).
    """
    watcher = Watcher()
    trials.observe(watcher)
    return [
        (torch.cat([exits for exits, _ in parts]), torch.cat([full for _, full in parts]))
        for parts in watcher.seen.values()
    ]


def learn_router(
    steps: list[tuple[Tensor, Tensor]], costs: list[float], price: float, *, every_other: bool
) -> StepSchedule:
    r"""Learns which exit each step takes.

    Arguments:
        steps: For each step predictions (B, K, ...) and the full model's (B, ...).
        costs: Cost of each exit, K values.
        price: :math:`\lambda`, relative to the mean square of the full model's prediction.
        every_other: Keep every other step a full one, the first among them.

    Returns:
        The schedule of the most probable choices.
    """
    products, sizes = zip(*(_inner(exits, full) for exits, full in steps), strict=True)
    inner = torch.stack(products)  # (S, K + 1, K + 1)
    scale = torch.stack(sizes)[:, None]  # (S, 1)
    price_of = torch.tensor([*costs, 1.0], dtype=inner.dtype)
    with torch.enable_grad():
        beta = torch.zeros(inner.shape[:2], dtype=inner.dtype, requires_grad=True)
        optimizer = torch.optim.Adam([beta], lr=_RATE)
        for _ in range(LEARNING_STEPS):
            p = beta.softmax(dim=1)
            error = torch.einsum("sd,sde,se->s", p, inner, p) / scale[:, 0]
            loss = (error + price * (p @ price_of)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    chosen = beta.detach().argmax(dim=1).tolist()
    last = inner.shape[1] - 1
    per_step = [
        FULL if d == last or (every_other and s % 2 == 0) else d + 1 for s, d in enumerate(chosen)
    ]
    return StepSchedule(tuple(per_step))


def _inner(exits: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of the differences of all choices to the full model, (K+1, K+1); its size."""
    difference = (exits - full[:, None]).double().flatten(2)
    # A choice that rows may not take is as bad as saying nothing.
    difference = torch.where(difference.isnan(), full.double().flatten(1)[:, None], difference)
    choices = difference.shape[1]
    flat = difference.transpose(0, 1).reshape(choices, -1)
    inner = torch.zeros(choices + 1, choices + 1, dtype=torch.float64)
    inner[:-1, :-1] = flat @ flat.T / flat.shape[1]
    return inner, full.double().square().mean().clamp(min=1e-12)


def find_router(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    """Learns routers for several prices and takes the one that meets the goal.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        setting: How the trials generate.

    Returns:
        The trial nearest to the budget from below, or the cheapest within the error bound.

    Raises:
        CalibrationError: If no price brings the cost down to the budget.
    """
    seen = watch(trials)
    costs = [e.cost for e in setting.model.exits]
    carried = setting.model.heads.kind.needs_trajectory
    low, high = 1e-9, 1e3
    tried: list[Trial] = []
    for _ in range(14):
        price = (low * high) ** 0.5
        trial = trials.run(learn_router(seen, costs, price, every_other=carried))
        tried.append(trial)
        if goal.budget is not None and goal.meets(trial):
            return trial
        loose = trial.cost <= goal.limit if goal.budget is not None else not _within(trial, goal)
        low, high = (low, price) if loose else (price, high)
    if goal.budget is not None:
        fitting = [t for t in tried if t.cost <= goal.limit]
        if not fitting:
            floor = min(t.cost for t in tried)
            full = ", with every other step a full one," if carried else ""
            raise CalibrationError(
                f"budget={goal.budget:g} is out of reach: the cheapest router{full} costs {floor:.3f}. "
                "Raise the budget, or wrap with earlier exits (exits=)."
            )
        return max(fitting, key=lambda t: t.cost)
    # Full steps alone make no error, whatever the prices tried did.
    tried.append(trials.run(StepSchedule((FULL,) * setting.steps)))
    return min((t for t in tried if _within(t, goal)), key=lambda t: t.cost)


def _within(trial: Trial, goal: Goal) -> bool:
    return trial.error <= (goal.max_error or 0.0)
