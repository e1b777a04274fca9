r"""Fitting carried exits: from a row's last two full steps to what the skipped blocks would do now.

From a walk of the full model a window is drawn: now (step s), the last full step :math:`s_1 = s - g`
and the one before it :math:`s_2 = s_1 - g'`. The head's error, in hidden space, is measured against
the error of plain reuse, so that steps where everything changes do not drown those where little does:

.. math:: \frac{|\hat v - v|^2}{|v_1 - v|^2 + \epsilon |v|^2}

The uncertainty head learns what remains after the correction, as the gap of the prediction:
:math:`\tanh(rms(y - y_N) / rms(y_N))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from exitkit.config import ExitConfig, LossConfig
from exitkit.errors import ConfigError
from exitkit.heads.carried.head import CarriedState, drift
from exitkit.training.batches import Example
from exitkit.training.divergences import Regression, pool_to, row_size
from exitkit.training.losses import LossParts
from exitkit.training.rollout import Rollout

if TYPE_CHECKING:
    from exitkit.model import ExitModel


@dataclass(frozen=True)
class Window:
    """What one exit sees in n windows.

    Attributes:
        h: Hidden state at the exit now, (n, ...).
        landing: Hidden state where the full model lands now, (n, ...).
        state: What was kept of the last two full steps.
    """

    h: Tensor
    landing: Tensor
    state: CarriedState


@dataclass(frozen=True)
class Windows:
    """n windows, the same for all exits.

    Attributes:
        examples: The forwards of now: one of n rows, or n of one packed sequence.
        level: Timestep of now on the scale 0..1000, (n,).
        prediction: What the full model predicts now, (n, ...).
        exits: What each exit sees, by exit.
    """

    examples: tuple[Example, ...]
    level: Tensor
    prediction: Tensor
    exits: dict[int, Window]


class CarriedLoss:
    """Draws windows from walks and measures the heads of carried exits on them.

    Arguments:
        config: The loss settings, or a whole `ExitConfig`; the defaults if None. Its weights of
            layers and uncertainty apply.
        gaps: Probabilities of 1, 2, ... steps from the last full step to now.
        previous_gaps: The same between the two full steps; as `gaps` if None.
        step_weights: How often each step of a walk is "now", one number a step (the first is never
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
        self, walk: Rollout, count: int, heads: Mapping[int, bool], numbers: torch.Generator
    ) -> Windows:
        """Draws windows from a walk.

        Arguments:
            walk: The walk, with hidden states.
            count: How many windows n.
            heads: Exits, and whether their carried value is the rest (else the landing state).
            numbers: Source of the draw.

        Returns:
            The windows.

        Raises:
            ConfigError: If the walk is too short or keeps no hidden states.
        """
        if walk.steps < 2 or not walk.hidden:
            raise ConfigError(
                f"CarriedLoss: a walk of {walk.steps} steps that keeps {len(walk.hidden)} exits; "
                "at least 2 steps and 1 exit are needed. Use Rollouts(..., hidden=True)."
            )
        device = walk.x.device
        s, s1, s2 = (i.to(device) for i in self._steps(walk.steps, count, numbers))
        rows = torch.randint(0, walk.rows, (count,), generator=numbers).to(device)
        level, level1, level2 = walk.levels[s], walk.levels[s1], walk.levels[s2]
        exits = {}
        for k, relative in heads.items():
            h, h1, h2 = (walk.take(walk.hidden[k], i, rows) for i in (s, s1, s2))
            v, v1, v2 = (walk.take(walk.landing[k], i, rows) for i in (s, s1, s2))
            if relative:
                v1, v2 = v1 - h1, v2 - h2
            gap1, gap2 = (level1 - level).abs() / 1000, (level2 - level1).abs() / 1000
            exits[k] = Window(h, v, CarriedState(h1, v1, gap1, h2, v2, gap2, level))
        prediction = walk.take(walk.prediction, s, rows)
        return Windows(walk.each(s, rows), level, prediction, exits)

    def _steps(
        self, steps: int, count: int, numbers: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of now, of the last full step, and of the one before it."""
        weights = torch.ones(steps) if self.step_weights is None else self.step_weights.clone()
        if weights.shape != (steps,):
            raise ConfigError(
                f"CarriedLoss: step_weights has {len(weights)} entries, the walks have {steps} steps."
            )
        weights[0] = 0
        s = torch.multinomial(weights, count, replacement=True, generator=numbers)
        gap = 1 + torch.multinomial(self.gaps, count, replacement=True, generator=numbers)
        s1 = (s - gap).clamp(min=0)
        before = 1 + torch.multinomial(self.previous_gaps, count, True, generator=numbers)
        # Where the last full step is the first of all, it stands for the one before it as well:
        # that is how a trajectory starts.
        return s, s1, (s1 - before).clamp(min=0)

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
        embedding = model.heads.embed(windows.level)
        corrected, terms, plain = {}, [], []
        for k, window in windows.exits.items():
            head: Any = model.heads.output[k - 1]
            landing = head(window.h, embedding, window.state)
            corrected[k] = landing.detach()
            reused = window.state.v1 + window.h if head.relative else window.state.v1
            error, reuse = (_distance(value, window.landing) for value in (landing, reused))
            size = window.landing.float().flatten(1).square().mean(dim=1)
            terms.append((error / (reuse + self.floor * size).detach().clamp(min=1e-20)).mean())
            plain.append((error / size.clamp(min=1e-20)).mean())
        gap = self._gap(model, windows, corrected, embedding)
        layers = torch.stack(terms).sum()
        total = self.config.layer_weight * layers + self.config.uncertainty_weight * gap
        unweighted = torch.stack(plain).sum()
        if self.config.unweighted:
            total = total + self.config.unweighted * unweighted
        per_exit = torch.stack([term.detach() for term in terms])
        parts = LossParts(total, None, gap, layers, unweighted, per_exit)
        parts.check_finite()
        return parts

    def _gap(
        self,
        model: ExitModel,
        windows: Windows,
        corrected: Mapping[int, Tensor],
        embedding: Tensor,
    ) -> Tensor:
        """Error of the uncertainty heads, on the first windows (which are as random as any)."""
        count = min(self.gap_rows, len(windows.level))
        some = slice(0, count)
        full = windows.prediction[some].float()
        landing = {k: v[some] for k, v in corrected.items()}
        with torch.no_grad():
            replayed = _replay_windows(model, windows.examples, landing, len(windows.level))
        terms = []
        for k, y in replayed.items():
            window = windows.exits[k]
            moved = drift(window.h, window.state)[some]
            u = model.heads.uncertainty[k - 1](moved, embedding[some])
            pseudo = Regression().relative(y.float(), full)
            if self.gap == "rms":
                size = row_size(full).flatten()
                rms = (y.float() - full).flatten(1).square().mean(dim=1).sqrt()
                pseudo = (rms / size).tanh().reshape(-1, *[1] * (u.dim() - 1)).expand(u.shape)
            terms.append((u.float() - pool_to(pseudo, u.shape)).square().mean())
        return torch.stack(terms).sum()


def _replay_windows(
    model: ExitModel, examples: Sequence[Example], landing: dict[int, Tensor], rows: int
) -> dict[int, Tensor]:
    """Predictions of the first windows of `rows`, from one example of all or from one for each."""
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


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each row, in float32, (n,)."""
    return (a.float() - b.float()).flatten(1).square().mean(dim=1)


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
