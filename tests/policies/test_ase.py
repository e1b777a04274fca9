"""ASE's schedules against their published table and the naive reading."""

from __future__ import annotations

import torch

from exitkit.policies import FULL, StepInfo, ase_schedule
from exitkit.policies.ase import PUBLISHED
from tests.policies import references_over_time as over_time
from tests.policies.families import table
from tests.policies.families_over_time import COSTS


def test_ase_equals_its_published_table_and_the_naive_reading() -> None:
    costs = [i / 28 for i in range(1, 28)]  # a DiT of 28 blocks, an exit behind each but the last
    published = ase_schedule(costs)
    times = torch.tensor([0.0, 99.9, 100.0, 250.0, 350.0, 450.0, 550.0, 650.0, 750.0, 850.0, 999.0])
    depths = published.depths(StepInfo(len(times), 27, times))
    assert depths.tolist() == [28, 28, 28, 24, 24, 20, 20, 16, 16, 12, 12]
    # An exit that costs more than the rest of the network is in nobody's share.
    assert ase_schedule([0.5, 1.1], (1.0, 0.9)).per_bin == (FULL, 1)
    seen = set()
    for scale in (0.3, 0.6, 1.0, 1.5, 3.0):
        policy = ase_schedule(COSTS, scale=scale)
        for seed in range(2):
            at = table(seed, steps=11)
            wanted = over_time.ase(at, COSTS, [share * scale for share in PUBLISHED])
            assert at.walk(policy).tolist() == wanted
            seen |= {d for row in wanted for d in row}
            # Negative control: the bins from the noisy end.
            turned = over_time.ase(at, COSTS, [share * scale for share in PUBLISHED[::-1]])
            assert turned != wanted or scale in (0.3, 3.0)  # all shallow, all full
    assert seen == {1, 2, 3, 4, 5, 6}
