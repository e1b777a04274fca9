r"""The training loss of AdaDiff, its released code, and this project's relative variant.

With exits :math:`g_1 .. g_K`, the full output :math:`y_N`, a target and uncertainties :math:`u_i`:

.. math::
    \hat u_i &= \tanh|g_i - target| \quad\text{(eq. 8), or}\quad \tanh(|g_i - y_N| / s) \\
    L_u &= \sum_i (u_i - \hat u_i)^2 \qquad
    L_{UAL} = \sum_{i<N} (1 - u_i) (g_i - target)^2 \quad\text{(eq. 11)} \\
    L &= L_{simple} + \lambda L_u + \beta L_{UAL} \quad\text{(eq. 12)}

Norms are means over elements and rows: the paper's weights are then independent of the image size.
Where the paper sums over exits, so does this. The released code differs in two places, both taken
with `weighting="certainty_share"`: :math:`L_u` is the mean over layers, and layer i is weighted by
:math:`\bar c_i / \sum_j \bar c_j`, with :math:`\bar c_i` the mean of :math:`1 - u_i` over the whole
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exitkit.config import ExitConfig, LossConfig
from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.training.divergences import Divergence, Regression, pool_to
from exitkit.training.tasks import Task


class Outputs(Protocol):
    """What `model(..., output_exits=True)` returns, as far as the loss looks at it."""

    @property
    def prediction(self) -> Tensor:
        """Prediction of the full model, (B, ...)."""

    @property
    def exits(self) -> Sequence[Tensor]:
        """Prediction of each exit, (B, ...)."""

    @property
    def uncertainty(self) -> Sequence[Tensor]:
        """Uncertainty at each exit, and at the end if the model has a head there."""


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is made of.

    Attributes:
        total: What to minimise, a scalar with its graph.
        final: Loss of the full output; None if there is no target to compare it with. It is part of
            the total only if the backbone is trained.
        uncertainty: L_u, before its weight.
        layers: L_UAL, the weighted errors of the exits, before its weight.
        unweighted: Sum of the errors of the exits (DuoDiff's fourth term), before its weight.
        per_exit: Error of each exit, without weights or graph, (K,).
    """

    total: Tensor
    final: Tensor | None
    uncertainty: Tensor
    layers: Tensor
    unweighted: Tensor
    per_exit: Tensor

    def check_finite(self) -> None:
        """Refuses NaN and infinity, and names the part.

        Raises:
            NonFiniteError: If a part is not finite; the message names the first one.
        """
        parts = {"final": self.final, "uncertainty": self.uncertainty, "layers": self.layers}
        values = {name: part.detach() for name, part in parts.items() if part is not None}
        values |= {f"exit {i + 1}": error for i, error in enumerate(self.per_exit)}
        values |= {"unweighted": self.unweighted.detach(), "total": self.total.detach()}
        # One transfer for all parts: a host look at each would stall the device.
        found = torch.stack([v.float() for v in values.values()]).tolist()
        bad = {n: v for n, v in zip(values, found, strict=True) if not abs(v) < float("inf")}
        if bad:
            listed = ", ".join(f"{name} = {value}" for name, value in bad.items())
            raise NonFiniteError(
                f"The loss is not finite: {listed}. Usual causes: data or a backbone with NaN, too "
                "large a learning rate (lr=), or float16 (try mixed_precision='bf16')."
            )


class ExitLoss:
    """The loss of a model with exits; also for a user's own loop.

    Arguments:
        task: The task; its divergence measures outputs. That of regressions if None.
        config: The loss settings, or a whole `ExitConfig` such as `model.exit_config`; the defaults
            if None.

    References:
        | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
          (Tang et al., 2023), eq. 8-12
        | https://arxiv.org/abs/2309.17074

    Example:
        >>> from types import SimpleNamespace
        >>> y = torch.zeros(2, 1, 4, 4)
        >>> out = SimpleNamespace(prediction=y, exits=[y + 1], uncertainty=[y + 0.25])
        >>> ExitLoss()(out, y).layers
        tensor(0.7500)
    """

    def __init__(
        self, task: Task | None = None, config: LossConfig | ExitConfig | None = None
    ) -> None:
        if task is not None and not isinstance(task, Task):
            raise ConfigError(
                f"ExitLoss: the first argument is the task, got {type(task).__name__}. Use "
                "ExitLoss(config=...) for the settings alone."
            )
        self.config = config.loss if isinstance(config, ExitConfig) else (config or LossConfig())
        self.task = task
        self.divergence: Divergence = Regression() if task is None else task.divergence

    def __call__(
        self, output: Outputs, target: Tensor | None = None, step: int | None = None
    ) -> LossParts:
        """Computes the loss in at least float32.

        Arguments:
            output: Output of `model(..., output_exits=True)`.
            target: The task's target, (B, ...) or classes (B,); may be None if exits are fitted to
                the full model (`target="model"`) and a frozen backbone has no loss of its own.
            step: Number of the optimiser step, for `alternating`; without it both halves count.

        Returns:
            The loss and its parts.

        Raises:
            ConfigError: If the target is missing, or there are too few uncertainty heads.
            ShapeError: If shapes do not fit each other.
            NonFiniteError: If a part of the loss is not finite.
        """
        config, divergence = self.config, self.divergence
        if target is None and (config.target == "task" or config.train_backbone):
            raise ConfigError(
                "ExitLoss: no target was given, and this config needs the task's "
                f"(target={config.target!r}, train_backbone={config.train_backbone}). Pass it, or "
                "fit exits of a frozen backbone to the full model: LossConfig(target='model')."
            )
        if target is not None and target.is_floating_point():
            target = _wide(target)
        full = _wide(output.prediction)
        size = full.shape
        prediction = divergence.crop([full], target)[0]
        exits = divergence.crop(
            [_same(_wide(e), size, i) for i, e in enumerate(output.exits)], target
        )
        us = [_wide(u) for u in output.uncertainty]
        us = [divergence.crop([u], target)[0] if u.shape == size else u for u in us]
        if not exits or len(us) not in (len(exits), len(exits) + 1):
            raise ConfigError(
                f"ExitLoss: {len(exits)} exits with {len(us)} uncertainties; expected at least one "
                "exit and one uncertainty for each, plus at most one for the end of the network."
            )
        reference = prediction.detach()
        # The target of exits; at the end of the network the full model is its own.
        goal = target if config.target == "task" and target is not None else reference
        compare = divergence.errors if config.target == "task" else divergence.distances
        outputs = [*exits, prediction]
        last = len(outputs) if config.include_last else len(exits)
        errors = [compare(g, goal) for g in outputs[:last]]
        uncertainty = self._uncertainty(us, outputs, goal, reference)
        layers = self._layers(us, errors)
        unweighted = torch.stack([e.mean() for e in errors]).sum()
        final = None if target is None else divergence.errors(prediction, target).mean()
        total = config.uncertainty_weight * uncertainty + config.layer_weight * layers
        if config.unweighted:
            total = total + config.unweighted * unweighted
        # Factors of 0 rather than omissions: every parameter then has a gradient at every step,
        # which training on several processes counts on.
        turn = step % 2 if config.alternating and step is not None else None
        total = total * (0.0 if turn == 0 else 1.0)
        if final is not None and config.train_backbone:
            total = total + (0.0 if turn == 1 else config.final_weight) * final
        per_exit = torch.stack([e.detach().mean() for e in errors[: len(exits)]])
        parts = LossParts(total, final, uncertainty, layers, unweighted, per_exit)
        parts.check_finite()
        mark = getattr(output, "mark_fitted", None)
        if mark is not None and turn != 0:
            mark_on_backward(total, mark, config.uncertainty_weight > 0)
        return parts

    def _uncertainty(
        self, us: list[Tensor], outputs: list[Tensor], goal: Tensor, reference: Tensor
    ) -> Tensor:
        terms = []
        for u, g in zip(us, outputs, strict=False):
            if self.config.uncertainty_target == "relative":
                pseudo = self.divergence.relative(g, reference)
            elif self.config.uncertainty_target == "disagreement":
                pseudo = self.divergence.disagreement(g, reference)
            else:
                pseudo = self.divergence.absolute(g, goal)
            if self.config.detach_pseudo_target:
                pseudo = pseudo.detach()
            terms.append((u - pool_to(pseudo, u.shape)).square().mean())
        stacked = torch.stack(terms)
        return stacked.mean() if self.config.weighting == "certainty_share" else stacked.sum()

    def _layers(self, us: list[Tensor], errors: list[Tensor]) -> Tensor:
        config = self.config
        means = torch.stack([e.mean() for e in errors])
        if config.weighting == "uniform":
            return means.sum()
        if config.weighting == "depth":
            numbers = torch.arange(1, len(means) + 1, device=means.device, dtype=means.dtype)
            return (numbers / numbers.sum() * means).sum()
        if len(us) < len(errors):
            raise ConfigError(
                f"ExitLoss: include_last=True with weighting={config.weighting!r} needs an "
                "uncertainty at the end of the network. Set UncertaintyConfig(final=True)."
            )
        certainty = [1 - (u.detach() if config.detach_weight else u) for u in us[: len(errors)]]
        if config.weighting == "certainty_share":
            share = torch.stack([c.mean() for c in certainty])
            share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
            return (share.clamp(min=config.weight_floor) * means).sum()
        terms = []
        for c, error in zip(certainty, errors, strict=True):
            if c.shape != error.shape:
                c, error = _rows(c), _rows(error)
            terms.append((c.clamp(min=config.weight_floor) * error).mean())
        return torch.stack(terms).sum()


def mark_on_backward(total: Tensor, mark: Callable[[bool], None], uncertainty: bool) -> None:
    """Lets the backward of a loss say that heads are fitted.

    Arguments:
        total: The loss.
        mark: Says it, and with True about the uncertainty heads as well.
        uncertainty: Whether the uncertainty heads are part of the loss.
    """
    if total.requires_grad:
        total.register_hook(lambda gradient: mark(uncertainty))


def _rows(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(dim=1)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: means over half-precision maps lose what thresholds are about."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _same(exit_: Tensor, size: torch.Size, index: int) -> Tensor:
    if exit_.shape != size:
        raise ShapeError(
            f"ExitLoss: exit {index + 1} gives {tuple(exit_.shape)}, the full model {tuple(size)}. "
            "Exits must predict what the model predicts."
        )
    return exit_
