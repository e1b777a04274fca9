"""A comparison of made-up numbers, with everything that a report can show."""

from __future__ import annotations

import torch

from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Interval, Ratio, Row

STEPS, SEEDS = 10, 6


def row(name, kind, family, cost, distance, **more):
    """A row of generated samples."""
    interval = Interval(distance, distance * 0.9, distance * 1.1)
    steps = round(STEPS * cost) if kind == "fewer steps" else STEPS
    return Row(
        name=name,
        kind=kind,
        family=family,
        sampler="DDIM",
        steps=steps,
        count=SEEDS,
        cost=cost,
        layers=cost,
        distance=interval,
        **more,
    )


def depths():
    """Depths of six samples over ten steps."""
    chosen = torch.randint(0, 3, (STEPS, SEEDS), generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.2, 0.6, 1.0])[chosen]
    return DepthMap(tuple(torch.linspace(900, 0, STEPS).tolist()), share)


def comparison():
    """Two policies, one of them with a schedule, and fewer steps."""
    closer = Interval(0.6, 0.5, 0.7)
    rows = (
        row("full", "full", "", 1.0, 0.0, clock=Ratio(1, 1, 1)),
        row(
            "mine <1>",
            "policy",
            "mine",
            0.5,
            0.0131,
            clock=Ratio(0.56, 0.5, 0.6),
            against_steps=closer,
            timestep_share=0.87,
        ),
        row("mine <1>, its schedule", "mode schedule", "mine", 0.5, 0.012),
        row("other", "policy", "other", 0.48, 0.36, against_steps=Interval(16, 14, 18)),
        row("fewer steps (5)", "fewer steps", "", 0.5, 0.0224),
    )
    generator = torch.Generator().manual_seed(0)
    images = {r.name: torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1 for r in rows}
    timesteps = tuple(torch.linspace(900, 0, STEPS).tolist())
    errors = LayerErrors(timesteps, torch.rand(STEPS, 3, generator=generator), ("a", "b", "c"), 8)
    maps = UncertaintyMaps(timesteps[:4], *torch.rand(3, 4, 1, 1, 8, 8, generator=generator), "a")
    return Comparison(
        rows=rows,
        title="Half & half",
        settings={"command": "python demo.py --x '<y>'"},
        machine={"cores": "2"},
        images=images,
        depths={"mine <1>": depths(), "other": depths()},
        errors={"mine": errors},
        maps={"mine": maps},
    )
