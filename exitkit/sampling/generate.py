"""Generation by seeds: each sample owns its noise, so it does not depend on its batch mates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exitkit.errors import ConfigError
from exitkit.sampling.fitted import warn_other_sampler
from exitkit.sampling.sample import Sample
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.seeds import seed_list


def generate(
    model: Callable[..., Any],
    sampler: SamplerBase,
    seeds: int | Sequence[int] = 1,
    *,
    progress: bool = False,
) -> Sample:
    """Generates samples, with or without early exit.

    Warns once where the exits of a wrapped model were fitted on rollouts of another sampler.

    Arguments:
        model: A wrapped model, or any module or function called as `model(x, t, **conditions)` with
            noisy inputs of shape (B, *shape) and timesteps of shape (B,).
        sampler: How trajectories are run.
        seeds: Seeds of the samples, or their number, counted from 0.
        progress: Whether to show a progress bar.

    Returns:
        The samples, and what was executed.

    Raises:
        ConfigError: If the sampler is none, or a seed is out of range.
        ShapeError: If the model's output has the wrong shape.
        NonFiniteError: If the model returns NaN or infinity.

    Example:
        `ek.generate(model, ek.Sampler("ddim", (3, 32, 32)), seeds=16).samples`
    """
    if not isinstance(sampler, SamplerBase):
        raise ConfigError(
            f"generate: expected a sampler, got {type(sampler).__name__}. Say how trajectories are run, "
            "for example ek.generate(model, ek.Sampler('ddim', shape=(3, 32, 32)), seeds=16)."
        )
    if not callable(model) or isinstance(getattr(model, "components", None), Mapping):
        raise ConfigError(
            f"generate: expected a wrapped model, a network or a function, got {type(model).__name__}. Of a "
            "pipeline, pass what ek.wrap returned: ek.generate(model, ek.PipelineSampler(pipe, calls))."
        )
    warn_other_sampler(model, sampler, "generate")
    return sampler.run(model, seed_list(seeds), progress=progress)
