"""Optimisers by name: against plain ones, what goes where, and the shape of schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from exitkit.errors import ConfigError
from exitkit.training import Optimizer


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def parameters() -> dict[str, nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    names = {
        "backbone.blocks.0.weight": (6, 4),
        "backbone.table": (5, 4),
        "backbone.blocks.0.b": (4,),
    }
    made = {name: nn.Parameter(torch.randn(shape, generator=g)) for name, shape in names.items()}
    return {**made, "heads.output.0.w": nn.Parameter(torch.randn(4, 4, generator=g))}


def test_muon_takes_the_matrices_of_blocks_alone() -> None:
    settings = Optimizer(lr=1e-3, matrices="muon", weight_decay=0.1).filled(True)
    mine, plain = parameters(), parameters()
    found = stepped(settings.make(mine, ("backbone.blocks.0.",)), list(mine.values()))
    adamw = Optimizer(lr=1e-3, weight_decay=0.1).filled(True)
    want = stepped(adamw.make(plain, ()), list(plain.values()))
    others = zip(found[1:], want[1:], strict=True)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in others)
    assert not torch.allclose(found[0], want[0])
    matrix = [parameters()["backbone.blocks.0.weight"]]
    rule = {"lr": 2.5e-3, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    moved = stepped_alone(torch.optim.Muon(matrix, nesterov=False, **rule), matrix)
    start = parameters()["backbone.blocks.0.weight"].detach()
    # Implementations differ in precision, not in direction and size.
    cosine = torch.cosine_similarity((found[0] - start).ravel(), (moved - start).ravel(), dim=0)
    assert cosine > 0.95 and 0.8 < (found[0] - start).norm() / (moved - start).norm() < 1.25


def test_a_recipe_of_muon_for_blocks_and_three_rates_of_adamw() -> None:
    """Each parameter gets the rate and the decay that are written down for it."""
    recipe = Optimizer(
        lr=1e-3,
        head_lr=5e-3,
        uncertainty_lr=4e-3,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        matrices="muon",
        other_decay=0.0,
        schedule="linear",
    ).filled(True)
    more = {"heads.uncertainty.0.weight": (3, 2), "backbone.blocks.0.scale_shift_table": (6, 4)}
    named = parameters() | {name: nn.Parameter(torch.ones(shape)) for name, shape in more.items()}
    made = recipe.make(named, ("backbone.blocks.0.",))
    owners = {id(parameter): name for name, parameter in named.items()}
    found = {
        owners[id(p)]: (group["lr"], group["weight_decay"], group["muon"])
        for group in made.param_groups
        for p in group["params"]
    }
    assert found == {
        "backbone.blocks.0.weight": (2.5e-3, 0.01, True),
        "backbone.table": (1e-3, 0.0, False),
        "backbone.blocks.0.b": (1e-3, 0.0, False),
        "heads.output.0.w": (5e-3, 0.0, False),
        "heads.uncertainty.0.weight": (4e-3, 0.0, False),
        "backbone.blocks.0.scale_shift_table": (1e-3, 0.0, False),
    }
    assert all(tuple(group["betas"]) == (0.9, 0.99) for group in made.param_groups)


def stepped_alone(optimizer: torch.optim.Optimizer, one: list[nn.Parameter]) -> torch.Tensor:
    """The same gradients as `stepped` gives to the first of all parameters."""
    generator = torch.Generator().manual_seed(1)
    shapes = [p.shape for p in parameters().values()]
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        one[0].grad = gradients[0]
        optimizer.step()
    return one[0].detach()


def rates(settings: Optimizer, steps: int, more: int = 0) -> list[list[float]]:
    """Rates of two groups of parameters, relative to the full ones, at each step."""
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [one], "lr": 1e-3}, {"params": [two], "lr": 5e-3}]
    optimizer = torch.optim.AdamW(groups)
    schedule = settings.make_schedule(optimizer, steps)
    found = []
    for step in range(steps + more):
        schedule.step_update(step + 1)
        now = [group["lr"] for group in optimizer.param_groups]
        found.append([now[0] / 1e-3, now[1] / 5e-3])
    return found


@pytest.mark.parametrize("warmup", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_schedules_warm_up_and_fall_in_one_way_for_all_groups(shape: Any, warmup: int) -> None:
    """Against formulas: step s of n, counted from 0."""
    n = 10
    found = rates(Optimizer(schedule=shape, warmup=warmup, cooldown=0.4), n)
    for s, factors in enumerate(found):
        warm = (s + 1) / warmup if s + 1 < warmup else None
        past = (s + 1 - warmup) / (n + 1 - warmup) if warm is None else 0.0
        want = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * past)),
            "linear": min(1.0, (n - s) / (0.4 * n)),
        }[shape]
        assert factors == pytest.approx([want if warm is None else warm] * 2)
    assert all(rate > 0 for factors in found for rate in factors), "a step that learns nothing"


def test_a_falling_rate_ends_at_zero_and_a_constant_one_does_not_end() -> None:
    for shape in ("cosine", "linear"):
        *_, after = rates(Optimizer(schedule=shape, warmup=2), 8, more=1)  # type: ignore[arg-type]
        assert after == pytest.approx([0.0, 0.0], abs=1e-12)
    constant = Optimizer(warmup=2, schedule="constant")
    assert rates(constant, 8) == rates(constant, 800)[:8]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"lr=-1.*schedule='step'.*cooldown=0.*matrices='muon'"):
        Optimizer("sgd", lr=-1, schedule="step", cooldown=0, matrices="muon")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"other_decay=0\.1 \(with matrices='muon' only\)"):
        Optimizer(matrices=None, other_decay=0.1)
    for name, match in {"adamv": "no optimiser 'adamv'", "adahessian": "second deriv"}.items():
        with pytest.raises(ConfigError, match=match):
            Optimizer(name).filled(False).make(parameters(), ())
