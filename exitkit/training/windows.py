"""Windows of rollouts: what carried exits are fitted and solved on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit.heads import CarriedHead, CarriedState, FullStep, Window
from exitkit.sampling.rollout import Rollout
from exitkit.training.batches import Example


@dataclass(frozen=True)
class Windows:
    """n windows, the same for all exits.

    Attributes:
        examples: The forwards of now: one of n rows, or n of one packed sequence.
        timestep: Timestep of now on the scale 0..1000, with shape (n,).
        prediction: What the full model predicts now, with shape (n, ...).
        exits: What each exit sees, by exit.
    """

    examples: tuple[Example, ...]
    timestep: Tensor
    prediction: Tensor
    exits: dict[int, Window]


@dataclass(frozen=True)
class Steps:
    """Where windows lie in a rollout: numbers of steps, each with shape (n,).

    Attributes:
        now: The step that the exit is met at.
        last: The last full step.
        before: The full step before it.
    """

    now: Tensor
    last: Tensor
    before: Tensor

    @classmethod
    def back(cls, now: Tensor, gap: Tensor | int, previous: Tensor | int) -> Steps:
        """Steps so many steps apart.

        Where the last full step is the first of all, it stands for the one before it as well: that
        is how a trajectory starts.
        """
        last = (now - gap).clamp(min=0)
        return cls(now, last, (last - previous).clamp(min=0))

    def to(self, device: torch.device) -> Steps:
        """The same on another device."""
        return Steps(self.now.to(device), self.last.to(device), self.before.to(device))


def window_of(rollout: Rollout, k: int, head: CarriedHead, steps: Steps, rows: Tensor) -> Window:
    """What exit k sees in windows of a rollout.

    Arguments:
        rollout: The rollout, with hidden states.
        k: The exit.
        head: Its output head, which says what is carried.
        steps: Where the windows are.
        rows: Their rows, with shape (n,).
    """

    def taken(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, landing = (rollout.take(x[k], at, rows) for x in (rollout.hidden, rollout.landing))
        return h, landing, rollout.t_normalized[at]

    def full(at: Tensor) -> FullStep:
        return head.full_step(*taken(at))

    h, landing, t = taken(steps.now)
    return Window(h, landing, CarriedState.between(t, full(steps.last), full(steps.before)))


def draw_windows(
    rollout: Rollout, heads: Mapping[int, CarriedHead], steps: Steps, rows: Tensor
) -> Windows:
    """The windows of all exits at some places of a rollout.

    Arguments:
        rollout: The rollout, with hidden states.
        heads: Output heads by exit.
        steps: Where the windows are.
        rows: Their rows, with shape (n,).
    """
    return Windows(
        tuple(Example(call.args, call.kwargs) for call in rollout.each(steps.now, rows)),
        rollout.t_normalized[steps.now],
        rollout.take(rollout.prediction, steps.now, rows),
        {k: window_of(rollout, k, head, steps, rows) for k, head in heads.items()},
    )


def windows_at(
    rollout: Rollout, k: int, head: CarriedHead, now: int, pairs: Sequence[tuple[int, int]]
) -> Iterator[Window]:
    """All rows of one step of a rollout, once for each pair of gaps that differs.

    Arguments:
        rollout: The rollout, with hidden states.
        k: The exit.
        head: Its output head.
        now: The step.
        pairs: Steps from the last full step to now, and between the two full steps.

    Yields:
        One window of B rows a pair.
    """
    rows = torch.arange(rollout.rows, device=rollout.x.device)
    seen = set()
    for gap, previous in pairs:
        steps = Steps.back(torch.full_like(rows, now), gap, previous)
        place = (int(steps.last[0]), int(steps.before[0]))
        if place not in seen:
            seen.add(place)
            yield window_of(rollout, k, head, steps, rows)
