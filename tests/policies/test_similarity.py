"""First-block similarity: strict, and compared with the right step."""

from __future__ import annotations

from dataclasses import replace

import torch

from exitkit.policies import FirstBlockSimilarity, Policy
from exitkit.testing import SignalTable


def test_first_block_similarity_is_strict_and_never_leaves_at_threshold_zero() -> None:
    # What the first block adds: 1, then 2, then 3 times the same; changes 1, then 1/2 or 2 in all.
    steps = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 2, 1, 4)
    at = SignalTable(
        timestep=torch.tensor([[900.0], [500.0], [100.0]]),
        maps=torch.zeros(3, 2, 1, 1),
        hidden=steps.clone(),
        entry=torch.zeros(3, 1, 4),
        prediction=torch.zeros(3, 2, 1, 1),
        full=torch.zeros(3, 1, 1),
    )

    def depths(policy: Policy) -> list[int]:
        return [int(d) for d in at.walk(policy).flatten()]

    same = replace(at, hidden=torch.ones_like(at.hidden))
    assert same.walk(FirstBlockSimilarity(0.0)).flatten().tolist() == [3, 3, 3]
    assert same.walk(FirstBlockSimilarity(1e-9)).flatten().tolist() == [3, 1, 1]
    # A row that stays runs in full, and is what the next step is compared with.
    assert depths(FirstBlockSimilarity(1.0)) == [3, 3, 1]
    assert depths(FirstBlockSimilarity(0.5)) == [3, 3, 3]
    assert depths(FirstBlockSimilarity(1 + 1e-6)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(2.0)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(2 + 1e-6)) == [3, 1, 1]
    # TeaCache sums changes from step to step: 1, and 1 1/2 with the next.
    assert depths(FirstBlockSimilarity(1.5, accumulate=True)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(1.5 + 1e-6, accumulate=True)) == [3, 1, 1]
    assert depths(FirstBlockSimilarity(1.0, accumulate=True)) == [3, 3, 1]
    # 2 r^2 - r: 1, then 0.
    assert depths(FirstBlockSimilarity(1 + 1e-6, True, (2.0, -1.0, 0.0))) == [3, 1, 1]
