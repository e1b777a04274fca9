"""Several policies on the same seeds, beside fewer steps: one table, one page. About a minute."""

from pathlib import Path
from tempfile import mkdtemp

import torch

import exitkit as ek
from examples.reproduction.models.models import load_uvit
from exitkit.policies import FixedExit, Interval, UncertaintyThreshold

BUDGET = 0.6
torch.manual_seed(0)
example = (torch.randn(2, 1, 32, 32), torch.tensor([500.0, 100.0]))
sampler = ek.Sampler("ddim", shape=(1, 32, 32), steps=10)
print(sampler.describe())

# %% Two kinds of exits on the same backbone, fitted for a moment on the model's own trajectories.
carried = ek.wrap(load_uvit(), "carried", example_inputs=example)
ek.fit(carried, ek.Rollouts(carried, sampler, seeds=8), steps=20, progress=False)
relative = ek.wrap(load_uvit(), "relative", example_inputs=example)
ek.fit(relative, sampler, steps=20, progress=False)

# %% Budgets are met on seeds that are not reported; each policy on its own path.
planned = ek.calibrate(carried, sampler, budget=BUDGET, policy="schedule", seeds=4, progress=False)
every = ek.calibrate(carried, sampler, budget=BUDGET, policy=Interval(2), seeds=4, progress=False)

# %% Entries take turns, batch by batch, on the same seeds.
comparison = ek.compare(
    [
        ek.Entry("carried, schedule", carried, planned.policy),
        ek.Entry("carried, interval", carried, every.policy),
        ek.Entry("carried, threshold", carried, UncertaintyThreshold(0.05)),
        ek.Entry("relative, always exit 5", relative, FixedExit(5)),
    ],
    sampler,
    seeds=8,
    progress=False,
)
print(comparison)

# %% What the table says is data. With so few steps fewer steps may win, and then it says so.
rows = {row.name: row for row in comparison.rows}
fewer = [row for name, row in rows.items() if name.startswith("fewer steps")]
assert fewer, "every comparison stands beside fewer steps"
carried_row, static = rows["carried, schedule"], rows["relative, always exit 5"]
assert carried_row.distance.mean < 0.5 * static.distance.mean and carried_row.cost < 0.65
best = min(fewer, key=lambda row: row.distance.mean)
print(
    f"carried {carried_row.distance.mean:.3f}, {best.name} {best.distance.mean:.3f} from the full run"
)

page = ek.write_report(comparison, Path(mkdtemp()) / "report.html")
assert "fewer steps" in page.read_text()
print(f"report: {page}")
