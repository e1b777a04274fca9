"""A pipeline's own call as the sampling loop: nothing of it is rebuilt by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from exitkit.errors import ConfigError, ShapeError
from exitkit.model import ExitModel, Wrapped
from exitkit.modes.flags import evaluating, preserved_rng
from exitkit.pipelines.answers import Answers
from exitkit.pipelines.capture import denoisers
from exitkit.pipelines.completion_aim import PipelineAim
from exitkit.pipelines.completion_walk import PipelineWalk
from exitkit.pipelines.enabling import is_pipeline
from exitkit.pipelines.requests import Requests
from exitkit.pipelines.routes import routed
from exitkit.pipelines.steps import Before, StepCounter, count_steps, scheduler_of
from exitkit.sampling.completion_walk import CompletionWalk
from exitkit.sampling.describing import in_words, plain_values, settings_of
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sample import Edit, Record
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.solvers import check_instance

ALIKE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference between samples drawn together and one by one, over their spread, by dtype."""


class PipelineSampler(SamplerBase):
    """Samples that a diffusers pipeline draws by its own call.

    Sample i is call number i mod n with a generator of its own, seeded i. What the pipeline does in its
    loop (schedulers, guidance, packed latents, several denoisers) is its own business; all its networks
    are in evaluation mode meanwhile. Steps are those of its scheduler.

    Arguments:
        pipe: The pipeline, wrapped or bare.
        calls: Keywords of the call of each sample, a list; `[{}]` for a pipeline without conditions.
        decode: Whether samples are pictures, sound or frames; latents if not.
        rows: Samples that are drawn by one call, if the pipeline draws the same ones then; the first
            batch is compared with single calls, and one by one is what remains if they differ.
        call_keywords: Keywords of every call, such as `num_inference_steps=28`.

    Raises:
        ConfigError: If an argument is unknown to the pipeline, or out of range.

    Example:
        `ek.PipelineSampler(pipe, [{"prompt": "a cat"}, {"prompt": "a dog"}], num_inference_steps=28)`
    """

    def __init__(
        self,
        pipe: Any,
        calls: Sequence[Mapping[str, Any]],
        *,
        decode: bool = False,
        rows: int = 1,
        **call_keywords: Any,
    ) -> None:
        if not is_pipeline(pipe):
            raise ConfigError(
                f"PipelineSampler: expected a diffusers pipeline, got {type(pipe).__name__}. A network by "
                "itself is sampled with ek.Sampler(scheduler, shape)."
            )
        check_instance(f"PipelineSampler: {type(pipe).__name__}", scheduler_of(pipe))
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ConfigError(
                f"PipelineSampler: rows must be a whole number of at least 1, got {rows!r}."
            )
        self.pipe, self.decode, self.rows = pipe, bool(decode), rows
        self.calls = calls
        self.requests = Requests(pipe, calls, call_keywords)
        self.steps = self.requests.steps
        self._inside = False
        self._together: bool | None = None if rows > 1 else False
        self._counted: int | None = None

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples that are drawn by one call: `rows`, or 1 where that would change them."""
        if self._together is None:
            self._together = self._draws_together()
        return self.rows if self._together else 1

    @property
    @override
    def ticks(self) -> int:
        return self._counted or self.steps

    @property
    @override
    def trajectory_steps(self) -> int | None:
        return self._counted

    @property
    @override
    def trajectories(self) -> int:
        return max(16, 4 * self.rows)

    @property
    @override
    def comparisons(self) -> int:
        return max(32, 4 * self.rows)

    @property
    @override
    def draws(self) -> int:
        return max(16, self.rows)

    @override
    def bare(self, backbone: nn.Module, model: Wrapped) -> nn.Module:
        return backbone

    @override
    def run_batch(
        self,
        model: Callable[..., Any],
        seeds: Tensor,
        edit: Edit | None,
        record: Record | None,
        tick: Callable[[], Any],
    ) -> Tensor:
        answers = Answers(self.pipe, model, seeds, edit, record)

        def ended() -> None:
            answers.next_step()
            tick()

        with routed(answers.by_backbone()):
            samples, counter = self.draw(seeds.tolist(), ended)
        if counter is not None and counter.count:
            self._counted = counter.count
        answers.check()
        return samples

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """All networks in evaluation mode, no bar, no gradients; random states are given back."""
        bar = getattr(self.pipe, "_progress_bar_config", None)
        networks = [c for c in self.pipe.components.values() if isinstance(c, nn.Module)]
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(evaluating(network))
            stack.enter_context(preserved_rng())
            stack.enter_context(torch.no_grad())
            if hasattr(self.pipe, "set_progress_bar_config"):
                self.pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
            try:
                yield
            finally:
                if bar is not None:
                    self.pipe._progress_bar_config = bar
                elif hasattr(self.pipe, "_progress_bar_config"):
                    del self.pipe._progress_bar_config

    def draw(
        self, seeds: list[int], ended: Callable[[], Any], before: Before | None = None
    ) -> tuple[Tensor, StepCounter | None]:
        """Draws samples by one call of the pipeline.

        Arguments:
            seeds: Seeds of the samples.
            ended: Called after each step of the scheduler.
            before: As for `StepCounter`.

        Returns:
            Samples, with shape (B, ...), and who counted the steps; None where nothing counts.
        """
        request = self.requests.of(seeds)
        if "output_type" in self.requests.names:
            request.setdefault("output_type", "pt" if self.decode else "latent")
        with torch.no_grad() if self._inside else self.quiet():
            torch.manual_seed(seeds[0])  # for schedulers that are called without a generator
            counter = count_steps(scheduler_of(self.pipe), ended, before)
            try:
                made = self.pipe(**request)
            finally:
                if counter is not None:
                    counter.remove()
        return self._samples(made, len(seeds), counter), counter

    def _samples(self, made: Any, count: int, counter: StepCounter | None) -> Tensor:
        """The samples in what a pipeline returned, or the last state where that are no latents."""
        first = made[0] if isinstance(made, tuple | list) else next(iter(made.values()), None)
        if not self.decode and not isinstance(first, Tensor) and counter is not None:
            first = None if counter.latents is None else counter.latents[:count]
        if self.decode and not isinstance(first, Tensor):
            first = _as_tensor(first)
        if not isinstance(first, Tensor) or len(first) != count:
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ShapeError(
                f"PipelineSampler: {type(self.pipe).__name__} returned {got} for {count} samples. "
                "Expected one row a sample: pass output_type= with which it returns tensors, or rows=1."
            )
        return first.detach()

    def _draws_together(self) -> bool:
        """Whether several samples of one call are those of single calls: tried on two steps."""
        seeds = list(range(self.rows))
        short = self if self.steps <= 2 else self.with_steps(2)
        bare = {
            network: lambda through, args, kwargs: through(*args, **kwargs)
            for network in denoisers(self.pipe).values()
        }
        with routed(bare):
            alone = torch.cat([short.draw([seed], lambda: None)[0] for seed in seeds])
            try:
                many = short.draw(seeds, lambda: None)[0]
                differ = float(paired_distance(many, alone).max() / alone.float().std())
                why = f"they differ by {differ:.2g} of the spread of the samples"
            except (ConfigError, ShapeError, RuntimeError, TypeError, ValueError) as error:
                differ, why = float("inf"), f"{type(error).__name__}: {error}"
        if differ <= ALIKE.get(alone.dtype, 5e-2):
            return True
        warnings.warn(
            f"PipelineSampler: {type(self.pipe).__name__} does not draw {self.rows} samples of one call as "
            f"it draws them one by one ({why}), so it draws them one by one.",
            stacklevel=3,
        )
        return False

    def over(self, scheduler: Any) -> Self:
        """The same sampler over a shallow copy of its pipeline, with another scheduler, inside `quiet`.

        Arguments:
            scheduler: The scheduler.
        """
        pipe, own = copy.copy(self.pipe), scheduler_of(self.pipe)
        name = next(name for name, part in pipe.components.items() if part is own)
        setattr(pipe, name, scheduler)
        options = {"decode": self.decode, "rows": self.rows, **self.requests.keywords}
        other = type(self)(pipe, self.calls, **options)
        other._together, other._inside = self._together, True
        return other

    @override
    def completion_walk(
        self, model: ExitModel, seeds: tuple[int, ...], progress: bool
    ) -> CompletionWalk:
        self._check_completes(model)
        return PipelineWalk(model, self, seeds, progress)

    @override
    def aimed(self, model: ExitModel, seeds: Tensor) -> Tensor:
        chosen = seeds.tolist()
        with self.quiet():
            return PipelineAim(model, self, chosen).run(chosen, lambda: None)[0]

    def _check_completes(self, model: ExitModel) -> None:
        """Refuses pipelines whose steps are not those of one network with rows."""
        found, name = denoisers(self.pipe), type(self.pipe).__name__
        if list(found.values()) != [model.backbone] or not model.plan.batched:
            why = "packs rows into one" if len(found) == 1 else f"has {len(found)} denoisers"
            raise ConfigError(
                f"fit: completion is solved along the steps of one denoiser with a row a sample, and {name} "
                f"{why} ({', '.join(found)}). Use the preset 'relative' or 'carried'."
            )

    @override
    def decoded(self, samples: Tensor) -> Any:
        return samples if self.decode else None

    @override
    def with_steps(self, steps: int) -> Self:
        options = {"decode": self.decode, "rows": self.rows, **self.requests.with_steps(steps)}
        other = type(self)(self.pipe, self.calls, **options)
        other._together = self._together
        return other

    @override
    def describe(self) -> dict[str, Any]:
        described = {
            "pipeline": type(self.pipe).__name__,
            "scheduler": settings_of(scheduler_of(self.pipe)),
            "steps": self.steps,
            "decode": self.decode,
            "call": {k: in_words(v) for k, v in self.requests.keywords.items()},
            "conditions": self.requests.given,
        }
        return plain_values(described)


def _as_tensor(value: Any) -> Tensor | None:
    """Arrays, or lists of them, as a tensor; None of anything else."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
