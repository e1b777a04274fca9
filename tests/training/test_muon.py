"""Muon beside AdamW: against each of them alone, and against singular value decompositions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exitkit.training import muon
from exitkit.training.muon import MuonAdamW, orthogonal

SHAPES = {"wide": (6, 14), "tall": (14, 6), "square": (8, 8), "kernel": (5, 3, 3, 3)}


def made() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    # Two of each shape, so that some are moved together.
    return [nn.Parameter(torch.randn(s, generator=g)) for s in SHAPES.values() for _ in range(2)]


def run(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter]) -> None:
    g = torch.Generator().manual_seed(1)
    for _ in range(4):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=g)
        for optimizer in optimizers:
            optimizer.step()


def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `torch.optim.Muon` iterate as it does, but without rounding to bfloat16."""

    def plainly(grad: torch.Tensor, coefficients: Any, steps: int, eps: float) -> torch.Tensor:
        a, b, c = coefficients
        tall = grad.size(0) > grad.size(1)
        x = grad.T if tall else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", plainly)


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (7, 7)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    found = orthogonal(matrices)
    assert found.shape == matrices.shape and found.dtype == matrices.dtype
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3 and values.max() < 1.3
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ v
    assert torch.cosine_similarity(found.flatten(1), nearest.flatten(1)).min() > 0.97
    # Negative control: the matrices themselves are not.
    assert s.max() / s.min() > 2


def test_the_update_is_that_of_torch_optim_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)
    rule = {"lr": 2e-2, "weight_decay": 0.1}
    matrices = [p for p in made() if p.dim() == 2]
    mine, theirs = matrices, [nn.Parameter(p.detach().clone()) for p in matrices]
    run([MuonAdamW([{"params": mine, "muon": True, **rule}], 1e-3, (0.9, 0.99))], mine)
    run([torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **rule)], theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mine[0], made()[0], atol=1e-3)


def test_the_rest_is_that_of_adamw_and_gradients_stay() -> None:
    mine, theirs, rule = made(), made(), {"lr": 1e-2, "weight_decay": 0.1}
    groups = [
        {"params": mine[:2], "muon": True, **rule},
        {"params": mine[2:], "muon": False, **rule},
    ]
    run([MuonAdamW(groups, 1e-3, (0.8, 0.95))], mine)
    run([torch.optim.AdamW(theirs[2:], betas=(0.8, 0.95), **rule)], theirs)
    for a, b in zip(mine[2:], theirs[2:], strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is not None for p in mine)


def test_kernels_move_as_matrices_do() -> None:
    kernel = made()[-1]
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    for p in (kernel, flat):
        optimizer = MuonAdamW([{"params": [p], "muon": True}], 1e-2, (0.9, 0.99))
        p.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(3)).view_as(p)
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_few_at_a_time_is_the_same_as_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    together, one_by_one = made(), made()
    run([MuonAdamW([{"params": together, "muon": True}], 1e-2, (0.9, 0.99))], together)
    monkeypatch.setattr(muon, "TOGETHER", 1)
    run([MuonAdamW([{"params": one_by_one, "muon": True}], 1e-2, (0.9, 0.99))], one_by_one)
    for a, b in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_parameter_without_gradient_stays() -> None:
    mine = made()
    optimizer = MuonAdamW([{"params": mine, "muon": True}], 1e-2, (0.9, 0.99))
    mine[0].grad = torch.ones_like(mine[0])
    optimizer.step(lambda: 1.0)
    start = made()
    assert not torch.equal(mine[0], start[0])
    assert all(torch.equal(a, b) for a, b in zip(mine[1:], start[1:], strict=True))
