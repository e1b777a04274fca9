"""Muon for matrices beside AdamW for everything else, as one optimiser.

The same update as `torch.optim.Muon` and timm's with `adjust_lr_fn="match_rms_adamw"`. Matrices of one
shape are orthogonalised together, a few launches for all blocks of a network; and in float32 on processors,
where the others' bfloat16 takes several times as long as the rest of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
TOGETHER = 2**24
"""Most elements that are orthogonalised at once: enough to fill a device, small beside the weights."""


class MuonAdamW(torch.optim.AdamW):
    """Muon in groups with `muon=True`, AdamW in the others.

    Arguments:
        groups: Groups of parameters, each with `muon`; those of Muon have two or more axes, and kernels
            count as matrices (out, in * height * width).
        lr: Learning rate of groups that name none.
        betas: Decays of AdamW's two moments.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025), for the size of the update
        | https://arxiv.org/abs/2502.16982
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            owned = [p for p in group["params"] if group["muon"] and p.grad is not None]
            self._move(owned, group["lr"], group["weight_decay"])
            moved |= {p: p.grad for p in owned}
        for p in moved:
            p.grad = None  # AdamW passes over what has no gradient
        try:
            super().step()
        finally:
            for p, gradient in moved.items():
                p.grad = gradient
        return loss

    def _move(self, parameters: list[nn.Parameter], lr: float, decay: float) -> None:
        by_shape: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
        for p in parameters:
            by_shape.setdefault((p.shape, p.device), []).append(p)
        for (shape, _), alike in by_shape.items():
            rows, columns = shape[0], shape[1:].numel()
            scale = -lr * 0.2 * max(rows, columns) ** 0.5
            most = max(1, TOGETHER // (rows * columns))
            for first in range(0, len(alike), most):
                some = alike[first : first + most]
                updates = orthogonal(torch.stack([self._update(p).flatten(1) for p in some]))
                for p, update in zip(some, updates, strict=True):
                    p.mul_(1 - lr * decay).add_(update.view_as(p), alpha=scale)

    def _update(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum of a parameter's gradient."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly, by Newton and Schulz's iteration.

    Arguments:
        matrices: Matrices, with shape (n, rows, columns).

    Returns:
        Matrices whose singular values lie near 1, with the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
