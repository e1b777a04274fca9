"""Data without a data set: the trajectories that the full model itself walks.

Heads are fitted on the inputs that they will meet, and their target is the model's own output, so
nothing but the model and a sampler is needed. A walk is a function of the seed and its number, so a
run that is taken up again sees the same walks.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError, NonFiniteError, ShapeError
from exitkit.modes import evaluating
from exitkit.training.batches import Example, to_device
from exitkit.training.rollout import Calling, Rollout, RolloutRecorder, usual_call
from exitkit.training.seeds import generator

if TYPE_CHECKING:
    from exitkit.model import ExitModel

Conditions = Mapping[str, Any] | Callable[[int, torch.Generator], Mapping[str, Any]]
"""Conditions of the rows: pools to draw rows from, or `(rows, generator) -> keyword arguments`."""


class Rollouts(Sequence[Rollout]):
    """Walks of the full model: a source of data for `fit` that needs no data.

    Arguments:
        model: The wrapped model. It runs without exits here, whatever its policy.
        scheduler: The diffusers scheduler of inference; a copy is used.
        shape: Shape of one sample, (C, H, W).
        steps: Sampling steps.
        batch_size: Rows of one walk.
        count: Trajectories in all; rounded up to whole walks.
        seed: Seed of starting noise, conditions and stochastic samplers.
        inputs: Further keyword arguments of the model: a mapping of pools (tensors with one entry a
            row, from which rows are drawn; other values are passed on), or a function
            `(rows, generator) -> keyword arguments`.
        guidance_scale: Classifier-free guidance. The model is then called with the rows of
            `negative_inputs` in front of those of `inputs`, as pipelines do.
        negative_inputs: Keyword arguments of the unconditional rows, in the form of `inputs`.
        hidden: Whether walks keep hidden states; if None, where the config is `carried`.
        dtype: Dtype of what is kept; the backbone's if None. bfloat16 halves the memory.
        draw: Rows of one training step; `batch_size` if None. Of packed sequences, windows.
        keep: Walks kept in memory.
        stay: Training steps with one walk before the next; 1 if all fit into memory, else 32.
        call: How the model is called: `(x, t, conditions) -> ek.Inputs`, with x (B, *shape) and t
            (B,); `model(x, t, **conditions)` if None. Of a packed sequence B is 1 (`batch_size=1`),
            and a mapping of `inputs` is passed on as it is.

    Raises:
        ConfigError: If an argument is out of range, or asks for rows of a packed sequence.
    """

    def __init__(
        self,
        model: ExitModel,
        scheduler: Any,
        shape: Sequence[int],
        *,
        steps: int = 50,
        batch_size: int = 64,
        count: int = 256,
        seed: int = 0,
        inputs: Conditions | None = None,
        guidance_scale: float | None = None,
        negative_inputs: Conditions | None = None,
        hidden: bool | None = None,
        dtype: torch.dtype | None = None,
        draw: int | None = None,
        keep: int = 4,
        stay: int | None = None,
        call: Calling | None = None,
    ) -> None:
        numbers = {"steps": steps, "batch_size": batch_size, "count": count, "keep": keep}
        numbers |= {name: n for name, n in (("draw", draw), ("stay", stay)) if n is not None}
        bad = [f"{name}={value}" for name, value in numbers.items() if value < 1]
        if bad:
            raise ConfigError(f"Rollouts: {', '.join(bad)}; expected at least 1.")
        if not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "step"):
            raise ConfigError(
                f"Rollouts: {type(scheduler).__name__} has no `set_timesteps` and `step`. "
                "Pass the diffusers scheduler that inference uses."
            )
        if (guidance_scale is None) != (negative_inputs is None):
            raise ConfigError(
                "Rollouts: guidance_scale and negative_inputs belong together; pass both."
            )
        self.batched = model.plan.batched
        if not self.batched and (batch_size != 1 or guidance_scale is not None):
            raise ConfigError(
                f"Rollouts: {model.plan.class_name} takes one packed sequence a call, so there "
                f"are no rows to stack; got batch_size={batch_size}, guidance_scale={guidance_scale}. "
                "Pass batch_size=1, and call=(x, t, conditions) -> ek.Inputs. For guidance, let a "
                "function `inputs` give the one branch or the other."
            )
        self.model, self.scheduler, self.shape = model, scheduler, tuple(shape)
        self.call = call or usual_call(model.plan, model.backbone.forward)
        self.steps, self.batch_size, self.seed = steps, min(batch_size, count), seed
        self.inputs, self.negative_inputs = inputs, negative_inputs
        self.guidance_scale = guidance_scale
        self.hidden = model.heads.kind.needs_trajectory if hidden is None else hidden
        self.dtype, self.keep = dtype, keep
        self.draw = draw or self.batch_size
        self._length = -(-count // self.batch_size)
        self.stay = stay or (1 if self._length <= keep else 32)
        self._walks: OrderedDict[int, Rollout] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Rollout]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Rollout number `index`, from memory or walked anew.

        Raises:
            IndexError: If there is no such walk.
        """
        if not isinstance(index, int) or not -len(self) <= index < len(self):
            raise IndexError(f"walk {index} of {len(self)}")
        index %= len(self)
        if index not in self._walks:
            while len(self._walks) >= self.keep:
                self._walks.popitem(last=False)
            self._walks[index] = self.walk(index)
        return self._walks[index]

    def at_step(self, step: int) -> Rollout:
        """The walk that training step `step` (from 0) draws from."""
        walk: Rollout = self[(step // self.stay) % len(self)]
        return walk

    def points(self, step: int, numbers: torch.Generator) -> Example:
        """Draws random forwards for training step `step`, `draw` rows.

        Arguments:
            step: The training step.
            numbers: Source of the draw.

        Returns:
            The example, without a target: the full model's own output is meant.
        """
        walk = self.at_step(step)
        draw = self.draw if self.batched else 1
        steps = torch.randint(0, walk.steps, (draw,), generator=numbers)
        rows = torch.randint(0, walk.rows, (draw,), generator=numbers)
        return walk.at(steps.to(walk.x.device), rows.to(walk.x.device))

    @torch.no_grad()
    def walk(self, index: int) -> Rollout:
        """Walks one batch of trajectories with the full model.

        Arguments:
            index: Number of the walk; it alone and the seed decide the random numbers.

        Returns:
            The walk.

        Raises:
            NonFiniteError: If the model predicts NaN or infinity.
        """
        model, scheduler = self.model, copy.deepcopy(self.scheduler)
        parameter = next(model.parameters())
        device, dtype = parameter.device, parameter.dtype
        numbers = generator(self.seed, "walk", index)
        x = torch.randn((self.batch_size, *self.shape), generator=numbers, dtype=torch.float32)
        kwargs = self._conditions(numbers)
        if self.guidance_scale is not None:
            negative = _conditions(self.negative_inputs, self.batch_size, numbers)
            kwargs = _stack(negative, kwargs)
        kwargs = to_device(kwargs, device)
        accepts = inspect.signature(scheduler.set_timesteps).parameters
        scheduler.set_timesteps(self.steps, **({"device": device} if "device" in accepts else {}))
        x = x.to(device, dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
        extra = {"generator": numbers} if "generator" in _names(scheduler.step) else {}
        log = RolloutRecorder(self.dtype, self.hidden)
        with evaluating(model):
            for t in scheduler.timesteps:
                given = x if self.guidance_scale is None else torch.cat([x, x])
                if hasattr(scheduler, "scale_model_input"):
                    given = scheduler.scale_model_input(given, t)
                given = given.to(dtype)
                named = self.call(given, t.to(device).expand(len(given)), kwargs)
                recording = model.record(*named.args, **named.kwargs)
                log.add(given, t, recording)
                prediction = self._guided(recording.prediction, x, scheduler)
                x = scheduler.step(prediction, t, x, **extra).prev_sample
                if not bool(torch.isfinite(prediction).all()):
                    raise NonFiniteError(
                        f"Rollouts: the model predicts NaN or infinity at timestep "
                        f"{float(t):g}. Check the weights, and whether {type(scheduler).__name__} "
                        "fits what the model predicts."
                    )
        walk = log.walk(kwargs, dtype, device)
        return replace(walk, call=self.call, batched=self.batched)

    def _conditions(self, numbers: torch.Generator) -> dict[str, Any]:
        if isinstance(self.inputs, Mapping) and not self.batched:
            return dict(self.inputs)  # lengths of one sequence, not entries for rows to draw from
        return _conditions(self.inputs, self.batch_size, numbers)

    def _guided(self, prediction: Tensor, x: Tensor, scheduler: Any) -> Tensor:
        if self.guidance_scale is not None:
            negative, positive = prediction.chunk(2)
            prediction = negative + self.guidance_scale * (positive - negative)
        channels = (x.shape[1], 2 * x.shape[1])
        if prediction.dim() != x.dim() or prediction.shape[1] not in channels:
            raise ShapeError(
                f"Rollouts: the model predicts {tuple(prediction.shape)} for a sample "
                f"{tuple(x.shape)}. Does shape={self.shape} fit the model?"
            )
        kind = getattr(getattr(scheduler, "config", None), "variance_type", None)
        learned = kind in ("learned", "learned_range")
        return prediction if learned else prediction[:, : channels[0]]


def _conditions(inputs: Conditions | None, rows: int, numbers: torch.Generator) -> dict[str, Any]:
    if inputs is None:
        return {}
    if callable(inputs):
        return dict(inputs(rows, numbers))
    pools = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and v.dim() > 0}
    sizes = {name: len(pool) for name, pool in pools.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"Rollouts: the pools of `inputs` have different lengths, {sizes}. Entries with "
            "one number belong together; pass a function for anything else."
        )
    if not pools:
        return dict(inputs)
    chosen = torch.randint(0, next(iter(sizes.values())), (rows,), generator=numbers)
    return {n: v[chosen.to(v.device)] if n in pools else v for n, v in inputs.items()}


def _stack(negative: dict[str, Any], positive: dict[str, Any]) -> dict[str, Any]:
    """Unconditional rows in front of conditional ones."""
    if negative.keys() != positive.keys():
        raise ConfigError(
            f"Rollouts: inputs name {sorted(positive)}, negative_inputs "
            f"{sorted(negative)}. Both branches need the same arguments."
        )
    return {
        name: torch.cat([negative[name], value])
        if isinstance(value, Tensor) and value.dim()
        else value
        for name, value in positive.items()
    }


def _names(function: Callable[..., Any]) -> Sequence[str]:
    return list(inspect.signature(function).parameters)
