r"""Fitting carried exits: from a row's last two full steps to what the skipped blocks would do now.

From a rollout of the full model a window is drawn: now (step s), the last full step
:math:`s_1 = s - g` and the one before it :math:`s_2 = s_1 - g'`. The head's error, in hidden space,
is measured against that of plain reuse (exitkit/heads/carried/loss.py). The uncertainty head learns
what remains after the correction, as the gap of the prediction:
:math:`\tanh(rms(y - y_N) / rms(y_N))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from exitkit.config import ExitConfig, LossConfig
from exitkit.errors import ConfigError
from exitkit.heads import CarriedHead
from exitkit.heads.carried.loss import landing_error
from exitkit.model import ExitModel
from exitkit.sampling.rollout import Rollout
from exitkit.training.divergences import Regression, pool_to, row_gap
from exitkit.training.losses import LossParts, mark_on_backward
from exitkit.training.windows import Steps, Windows, draw_windows


class CarriedLoss:
    """Draws windows from rollouts and measures the heads of carried exits on them.

    Arguments:
        config: The loss settings, or a whole `ExitConfig`; the defaults if None. Its weights of
            layers and uncertainty apply.
        gaps: Probabilities of 1, 2, ... steps from the last full step to now.
        previous_gaps: The same between the two full steps; as `gaps` if None.
        step_weights: How often each step of a rollout is "now", one number a step (the first is never
            drawn: nothing has been carried yet); all alike if None.
        floor: The epsilon of the relative error, at least 0.
        gap_rows: Windows of each step whose gap is computed for the uncertainty head, by one replay
            of the backbone's tail.
        gap: `rms` for one gap a row, `map` for the relative gap of every output element.

    Raises:
        ConfigError: If probabilities or numbers are out of range.
    """

    def __init__(
        self,
        config: LossConfig | ExitConfig | None = None,
        *,
        gaps: Sequence[float] = (1.0, 1.0),
        previous_gaps: Sequence[float] | None = (1.0, 1.0, 1.0),
        step_weights: Sequence[float] | None = None,
        floor: float = 1e-6,
        gap_rows: int = 16,
        gap: Literal["rms", "map"] = "rms",
    ) -> None:
        self.config = config.loss if isinstance(config, ExitConfig) else (config or LossConfig())
        self.gaps = _weights("gaps", gaps)
        self.previous_gaps = _weights("previous_gaps", previous_gaps or gaps)
        self.step_weights = (
            None if step_weights is None else torch.tensor([float(w) for w in step_weights])
        )
        if floor < 0 or gap_rows < 1 or gap not in ("rms", "map"):
            raise ConfigError(
                f"CarriedLoss: floor must be at least 0 (got {floor}), gap_rows at least 1 (got "
                f"{gap_rows}), gap 'rms' or 'map' (got {gap!r})."
            )
        self.floor, self.gap_rows, self.gap = floor, gap_rows, gap

    @property
    def gap_steps(self) -> tuple[int, ...]:
        """Gaps between the last full step and now that can be drawn."""
        return tuple(i for i, p in enumerate(self.gaps.tolist(), start=1) if p > 0)

    @property
    def previous_gap_steps(self) -> tuple[int, ...]:
        """Gaps between the two full steps that can be drawn."""
        return tuple(i for i, p in enumerate(self.previous_gaps.tolist(), start=1) if p > 0)

    def sample(
        self,
        rollout: Rollout,
        count: int,
        heads: Mapping[int, CarriedHead],
        numbers: torch.Generator,
    ) -> Windows:
        """Draws windows from a rollout.

        Arguments:
            rollout: The rollout, with hidden states.
            count: How many windows n.
            heads: Output heads by exit.
            numbers: Source of the draw.

        Returns:
            The windows.

        Raises:
            ConfigError: If the rollout is too short or keeps no hidden states.
        """
        if rollout.steps < 2 or not rollout.hidden:
            raise ConfigError(
                f"CarriedLoss: a rollout of {rollout.steps} steps that keeps {len(rollout.hidden)} "
                "exits; at least 2 steps and 1 exit are needed. Use Rollouts(..., hidden=True)."
            )
        device = rollout.x.device
        steps = self._steps(rollout.steps, count, numbers).to(device)
        rows = torch.randint(0, rollout.rows, (count,), generator=numbers).to(device)
        return draw_windows(rollout, heads, steps, rows)

    def _steps(self, steps: int, count: int, numbers: torch.Generator) -> Steps:
        """Steps of now, of the last full step, and of the one before it."""
        weights = torch.ones(steps) if self.step_weights is None else self.step_weights.clone()
        if weights.shape != (steps,):
            raise ConfigError(
                f"CarriedLoss: step_weights has {len(weights)} entries, the rollouts have {steps} "
                "steps. Pass one weight a step."
            )
        weights[0] = 0
        now = torch.multinomial(weights, count, replacement=True, generator=numbers)
        gap = 1 + torch.multinomial(self.gaps, count, replacement=True, generator=numbers)
        before = 1 + torch.multinomial(self.previous_gaps, count, True, generator=numbers)
        return Steps.back(now, gap, before)

    def __call__(self, model: ExitModel, windows: Windows) -> LossParts:
        """Measures the heads.

        Arguments:
            model: The wrapped model.
            windows: Windows from `sample`.

        Returns:
            The loss. `layers` is the sum over exits of the error relative to plain reuse (1 for
            untrained heads), `per_exit` its terms, `unweighted` the same sum relative to the size
            of the landing state.

        Raises:
            NonFiniteError: If a part of the loss is not finite.
        """
        embedding = model.heads.embed(windows.timestep)
        errors = {
            k: landing_error(head, windows.exits[k], embedding, self.floor)
            for k, head in carried_heads(model).items()
            if k in windows.exits
        }
        gap = self._gap(
            model, windows, {k: e.landing.detach() for k, e in errors.items()}, embedding
        )
        terms, plain = [e.relative for e in errors.values()], [e.plain for e in errors.values()]
        layers = torch.stack(terms).sum()
        total = self.config.layer_weight * layers + self.config.uncertainty_weight * gap
        unweighted = torch.stack(plain).sum()
        if self.config.unweighted:
            total = total + self.config.unweighted * unweighted
        per_exit = torch.stack([term.detach() for term in terms])
        parts = LossParts(total, None, gap, layers, unweighted, per_exit)
        parts.check_finite()
        mark_on_backward(total, model.heads.mark_fitted, self.config.uncertainty_weight > 0)
        return parts

    def _gap(
        self, model: ExitModel, windows: Windows, landing: Mapping[int, Tensor], embedding: Tensor
    ) -> Tensor:
        """Error of the uncertainty heads, on the first windows (which are as random as any)."""
        count = min(self.gap_rows, len(windows.timestep))
        full = windows.prediction[:count].float()
        with torch.no_grad():
            replayed = _replay_windows(model, windows, {k: v[:count] for k, v in landing.items()})
        terms = []
        for k, y in replayed.items():
            window = windows.exits[k]
            seen = window.state.drift(window.h)[:count]
            u = model.heads.uncertainty[k - 1](seen, embedding[:count])
            if self.gap == "map":
                pseudo = pool_to(Regression().relative(y.float(), full), u.shape)
            else:
                pseudo = row_gap(y.float(), full).reshape(-1, *[1] * (u.dim() - 1)).expand(u.shape)
            terms.append((u.float() - pseudo).square().mean())
        return torch.stack(terms).sum()


def carried_heads(model: ExitModel) -> dict[int, CarriedHead]:
    """Output heads of a model that are carried, by exit."""
    found = enumerate(model.heads.output, start=1)
    return {k: head for k, head in found if isinstance(head, CarriedHead)}


def _replay_windows(
    model: ExitModel, windows: Windows, landing: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Predictions of the first windows, from one example of all or from one for each."""
    examples, rows = windows.examples, len(windows.timestep)
    count = len(next(iter(landing.values())))
    if model.plan.batched:
        (example,), some = examples, slice(0, count)
        args = tuple(_head(value, some, rows) for value in example.args)
        kwargs = {name: _head(value, some, rows) for name, value in example.kwargs.items()}
        return _replay(model, args, kwargs, landing)
    each = [
        _replay(model, e.args, e.kwargs, {k: v[i : i + 1] for k, v in landing.items()})
        for i, e in enumerate(examples[:count])
    ]
    return {k: torch.cat([predictions[k] for predictions in each]) for k in landing}


def _replay(
    model: ExitModel, args: tuple[Any, ...], kwargs: dict[str, Any], landing: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Predictions for hidden states at each exit's landing: one pass for all that reach the tail."""
    ends = {
        k: v for k, v in landing.items() if model.heads.landings[k - 1] == model.plan.num_stages
    }
    found = (
        dict(zip(ends, model.replay(args, kwargs, list(ends.values())), strict=True))
        if ends
        else {}
    )
    for k in landing.keys() - ends.keys():
        # An exit that resumes at its mirror: everything but the blocks passed over runs once more.
        found[k] = model.replay(args, kwargs, [landing[k]], exit=k)[0]
    return found


def _head(value: Any, some: slice, rows: int) -> Any:
    is_by_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
    return value[some] if is_by_row else value


def _weights(name: str, values: Sequence[float]) -> Tensor:
    weights = torch.tensor([float(v) for v in values])
    if not len(weights) or bool((weights < 0).any()) or float(weights.sum()) <= 0:
        raise ConfigError(
            f"CarriedLoss: {name}={tuple(values)!r}; expected probabilities of 1, 2, ... steps, at "
            "least 0 and not all 0."
        )
    return weights
