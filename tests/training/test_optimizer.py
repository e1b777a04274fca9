"""Optimisers by name: against plain ones, what goes where, and the shape of schedules."""

from __future__ import annotations

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
    names = {"backbone.blocks.0.w": (6, 4), "backbone.table": (5, 4), "backbone.blocks.0.b": (4,)}
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
    matrix = [parameters()["backbone.blocks.0.w"]]
    rule = {"lr": 2.5e-3, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    moved = stepped_alone(torch.optim.Muon(matrix, nesterov=False, **rule), matrix)
    start = parameters()["backbone.blocks.0.w"].detach()
    # Implementations differ in precision, not in direction and size.
    cosine = torch.cosine_similarity((found[0] - start).ravel(), (moved - start).ravel(), dim=0)
    assert cosine > 0.95 and 0.8 < (found[0] - start).norm() / (moved - start).norm() < 1.25


def stepped_alone(optimizer: torch.optim.Optimizer, one: list[nn.Parameter]) -> torch.Tensor:
    """The same gradients as `stepped` gives to the first of all parameters."""
    generator = torch.Generator().manual_seed(1)
    shapes = [p.shape for p in parameters().values()]
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        one[0].grad = gradients[0]
        optimizer.step()
    return one[0].detach()


def test_linear_is_constant_and_then_falls_to_zero() -> None:
    settings = Optimizer(schedule="linear", warmup=2, cooldown=0.5)
    factors = [settings.factor(step, 8) for step in range(9)]
    assert factors == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"lr=-1.*schedule='step'.*cooldown=0.*matrices='muon'"):
        Optimizer("sgd", lr=-1, schedule="step", cooldown=0, matrices="muon")  # type: ignore[arg-type]
    for name, match in {"adamv": "no optimiser 'adamv'", "adahessian": "second deriv"}.items():
        with pytest.raises(ConfigError, match=match):
            Optimizer(name).filled(False).make(parameters(), ())
