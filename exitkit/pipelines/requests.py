"""The calls of a pipeline, for one sample or several at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError, suggest

_OWN = (
    "generator",
    "return_dict",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_waveforms_per_prompt",
)
"""Arguments that the sampler gives, or that would make several samples of one call."""

_STEPS = ("num_inference_steps", "prior_num_inference_steps", "num_steps", "steps")
"""Names under which pipelines take the number of steps."""


class Requests:
    """Keyword arguments of a pipeline's call, by seed.

    Arguments:
        pipe: The pipeline.
        calls: Arguments of one sample each: seed s makes call s mod n.
        keywords: Arguments of every call.

    Attributes:
        names: Arguments that the pipeline takes.
        steps: Steps asked for.
        steps_name: The argument that says so; None where the pipeline has none.

    Raises:
        ConfigError: If there is no call, or an argument is unknown or not to be given.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Mapping[str, Any]], keywords: Mapping[str, Any]
    ) -> None:
        self._class = type(pipe).__name__
        self._calls, self.keywords = _checked(self._class, calls), dict(keywords)
        parameters = inspect.signature(type(pipe).__call__).parameters
        self.names = set(parameters) - {"self"}
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._check_names()
        self.steps_name = next((name for name in _STEPS if name in self.names), None)
        self.steps = self._steps(parameters)
        self._constant = {
            name
            for name, value in self._calls[0].items()
            if all(_same(call.get(name), value) for call in self._calls)
        }

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def given(self) -> list[str]:
        """Names of the arguments that calls differ in."""
        return sorted({name for call in self._calls for name in call})

    def _check_names(self) -> None:
        given = [*self.keywords, *self.given]
        own = [name for name in _OWN if name in given]
        if own:
            raise ConfigError(
                f"PipelineSampler: {', '.join(own)} cannot be given: sample i is one call with a "
                "generator of seed i. Leave it out; seeds= says how many samples."
            )
        unknown = [n for n in given if n not in self.names and not self._open]
        if unknown:
            raise ConfigError(
                f"PipelineSampler: {self._class} takes no {', '.join(map(repr, unknown))}."
                f"{suggest(unknown[0], self.names)}"
            )
        twice = [name for name in self.keywords if name in self.given]
        if twice:
            raise ConfigError(
                f"PipelineSampler: {', '.join(twice)} is given for every call and in the calls. Give it "
                "in one place."
            )

    def _steps(self, parameters: Mapping[str, inspect.Parameter]) -> int:
        for name in ("timesteps", "sigmas"):
            if self.keywords.get(name) is not None:
                return len(self.keywords[name])
        if self.steps_name is None:
            return 1
        given = {call[self.steps_name] for call in self._calls if self.steps_name in call}
        if given:
            raise ConfigError(
                f"PipelineSampler: {self.steps_name} belongs to all calls, so that trajectories have the "
                f"same steps. Give it once: PipelineSampler(pipe, calls, {self.steps_name}="
                f"{max(given)})."
            )
        usual = parameters[self.steps_name].default
        steps = self.keywords.get(self.steps_name, usual if isinstance(usual, int) else 50)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ConfigError(
                f"PipelineSampler: {self.steps_name} must be a whole number of at least 1, got {steps!r}."
            )
        return steps

    def with_steps(self, steps: int) -> dict[str, Any]:
        """Arguments of every call, with another number of steps.

        Arguments:
            steps: The number.

        Raises:
            ConfigError: If the pipeline's own argument for it is not in use.
        """
        fixed = [n for n in ("timesteps", "sigmas") if self.keywords.get(n) is not None]
        if self.steps_name is None or fixed:
            why = f"{fixed[0]} are given" if fixed else "it takes no number of steps"
            raise ConfigError(
                f"PipelineSampler: {self._class} cannot run with {steps} steps: {why}. Make another "
                "sampler for them."
            )
        return {**self.keywords, self.steps_name: steps}

    def of(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The arguments of one call for some seeds, generators included.

        Arguments:
            seeds: Seeds of the samples.

        Returns:
            Arguments by name.

        Raises:
            ConfigError: If several samples cannot be asked for in one call.
        """
        group = [self._calls[seed % len(self._calls)] for seed in seeds]
        found = {n: v if len(seeds) == 1 else _spread(n, v, len(seeds)) for n, v in self._shared()}
        for name in group[0]:
            values = [call[name] for call in group]
            found[name] = values[0] if len(seeds) == 1 else self._stacked(name, values)
        if "batch_size" in self.names:
            found.setdefault("batch_size", len(seeds))
        if "generator" in self.names:
            sources = [torch.Generator().manual_seed(seed) for seed in seeds]
            found["generator"] = sources[0] if len(seeds) == 1 else sources
        if "return_dict" in self.names:
            found["return_dict"] = False
        return found

    def _shared(self) -> list[tuple[str, Any]]:
        return list(self.keywords.items())

    def _stacked(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if all(isinstance(v, Tensor) and v.ndim and len(v) == 1 for v in values):
            return torch.cat(values)
        if all(isinstance(v, list) and len(v) == 1 for v in values):
            return [v[0] for v in values]
        if all(isinstance(v, str) or _is_picture(v) for v in values):
            return values
        if name in self._constant and not isinstance(first, list | tuple | Tensor | Mapping):
            return first
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return values
        raise ConfigError(
            f"PipelineSampler: {name!r} of several calls cannot be put into one: strings, pictures, whole "
            "numbers, and lists or tensors of one row can. Use rows=1."
        )


def _checked(name: str, calls: Any) -> list[dict[str, Any]]:
    if isinstance(calls, Mapping) or not isinstance(calls, Sequence) or not calls:
        raise ConfigError(
            f"PipelineSampler: calls must be a list of the keywords of {name}'s call, one entry a sample, "
            f"such as [{{'prompt': 'a cat'}}, {{'prompt': 'a dog'}}], or [{{}}] for a pipeline without "
            f"conditions; got {type(calls).__name__ if calls else calls!r}."
        )
    wrong = next((call for call in calls if not isinstance(call, Mapping)), None)
    if wrong is not None:
        raise ConfigError(
            f"PipelineSampler: every call must be a mapping of keywords, such as {{'prompt': 'a cat'}}; "
            f"one is a {type(wrong).__name__}."
        )
    keys = [set(call) for call in calls]
    odd = next((k for k in keys if k != keys[0]), None)
    if odd is not None:
        raise ConfigError(
            f"PipelineSampler: all calls must have the same keywords; one has {sorted(keys[0])}, another "
            f"{sorted(odd)}."
        )
    return [dict(call) for call in calls]


def _spread(name: str, value: Any, count: int) -> Any:
    """An argument of every call, for several samples in one: what has a row a sample gets more."""
    if isinstance(value, str) and "prompt" in name or _is_picture(value):
        return [value] * count
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == 1:
        return torch.cat([value] * count)
    return value


def _is_picture(value: Any) -> bool:
    """Whether a value is a picture of PIL, which need not be installed."""
    return any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(value).__mro__)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return type(one) is type(other) and bool(one == other)
