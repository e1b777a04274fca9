"""The policy of a model that was just wrapped."""

from __future__ import annotations

import torch

from exitkit.policies import NeverExit, Schedule, StepInfo


def test_every_row_runs_to_the_end_with_or_without_time_and_steps() -> None:
    for exits in (1, 5):
        for info in (StepInfo(3, exits), StepInfo(3, exits, torch.zeros(3), 1, 4)):
            assert NeverExit().depths(info).tolist() == [exits + 1] * 3
    assert isinstance(NeverExit(), Schedule) and NeverExit().tuning() is None
