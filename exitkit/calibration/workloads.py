"""The workload of what a policy will be used on: a sampler, or batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from exitkit.calibration.completion import CompletionWorkload
from exitkit.calibration.workload import ClassificationWorkload, GenerationWorkload, Workload
from exitkit.errors import ConfigError
from exitkit.model import ExitModel, Wrapped
from exitkit.policies import UncertaintyThreshold
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.seeds import CALIBRATE, seed_list

COUNT = 32
"""Trajectories that policies are calibrated on, where nothing is said."""


def make_workload(
    model: Wrapped,
    on: SamplerBase | Iterable[Any],
    seeds: int | Sequence[int] | None = None,
    template: UncertaintyThreshold | None = None,
    *,
    progress: bool = False,
) -> Workload:
    """Makes the workload of a sampler or of a loader.

    Arguments:
        model: The wrapped model.
        on: A sampler, or batches of images that can be read repeatedly: tensors, or tuples and lists
            that begin with one.
        seeds: Seeds of the samples, or how many, counted from 10,000; with a loader None.
        template: If given, uncertainties are read on the full model's trajectories as it reads them.
        progress: Whether to show a progress bar.

    Returns:
        The workload; the full model has run.

    Raises:
        ConfigError: If it is neither, or a loader can be read only once or comes with seeds.
        CalibrationError: If a loader is empty.
    """
    if isinstance(on, SamplerBase):
        chosen = seed_list(COUNT if seeds is None else seeds, CALIBRATE)
        if isinstance(model, ExitModel) and model.heads.completion is not None:
            return CompletionWorkload(model, on, chosen, template, progress=progress)
        return GenerationWorkload(model, on, chosen, template, progress=progress)
    if not isinstance(on, Iterable):
        raise ConfigError(
            f"calibrate needs what the policy will be used on: a sampler, or batches of images for a "
            f"classifier; got {type(on).__name__}. For example ek.Sampler(scheduler, shape, steps=50)."
        )
    if seeds is not None:
        raise ConfigError(
            "seeds= names trajectories of a sampler; a classifier is calibrated on the images of its "
            "loader. Leave seeds out, or pass a sampler."
        )
    return ClassificationWorkload(model, on, template, progress=progress)
