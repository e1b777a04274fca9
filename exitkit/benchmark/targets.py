"""What the command line works on, by address: a diffusers folder, a network of timm, or a suite."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from exitkit._compat import require
from exitkit.benchmark.suite import Suite, load_named
from exitkit.benchmark.timm_models import PREFIX, timm_model
from exitkit.errors import ConfigError
from exitkit.pipelines.enabling import is_pipeline
from exitkit.pipelines.sampler import PipelineSampler
from exitkit.sampling.sampler import SamplerBase


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FitSettings(_Strict):
    """How exits are fitted.

    Attributes:
        steps: Optimiser steps.
        batch_size: Rows of a batch, where a suite has data.
        seed: Seed of everything random.
    """

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    seed: int = 0


class CalibrateSettings(_Strict):
    """What a policy has to meet.

    Attributes:
        budget: Cost in (0, 1].
        max_error: Largest mean distance to the full model.
        policy: Family of policies, as `calibrate` knows it by name.
        seeds: How many samples are measured.
    """

    budget: float | None = Field(default=None, gt=0, le=1)
    max_error: float | None = Field(default=None, gt=0)
    policy: str | None = None
    seeds: int | None = Field(default=None, ge=1)


class CompareSettings(_Strict):
    """What `exitkit compare` judges, and on how much.

    Attributes:
        policies: Names or wildcards of methods.
        budget: Cost to calibrate to, in (0, 1].
        steps: Sampler steps; 0 takes the suite's own.
        seeds: How many seeds.
        recipe: What fits and calibrations take: steps (of each kind of exits), batch_size, rollouts,
            calibration (seeds), seed, as `steps=450,batch_size=32`.
    """

    policies: list[str] = ["*"]
    budget: float = Field(default=0.5, gt=0, le=1)
    steps: int = Field(default=0, ge=0)
    seeds: int = Field(default=64, ge=1)
    recipe: str = "steps=450,batch_size=32"


class WorkSettings(_Strict):
    """The settings file of `exitkit fit`, `calibrate`, `generate` and `compare`.

    Attributes:
        preset: Kind of exits.
        exits: Which boundaries carry exits: numbers, paths or wildcards; the usual ones if left out.
        calls: Keywords of the pipeline's call, one entry a sample: `[{"prompt": "a lighthouse"}]`.
        call: Keywords of every call, such as `{"num_inference_steps": 28}`.
        rows: Samples that one call of the pipeline draws.
        data: Labelled images of a classifier, `module:function` of batches (images, labels).
        weights: Weights of a network of timm, a file of safetensors; random ones if left out.
        device: Where it runs.
        dtype: What a pipeline's weights are loaded as.
        fit: How exits are fitted.
        calibrate: What the policy has to meet.
        compare: What methods are judged on.
    """

    preset: str = "relative"
    exits: list[int | str] | Literal["first"] | None = None
    calls: list[dict[str, Any]] = [{}]
    call: dict[str, Any] = {}
    rows: int = Field(default=1, ge=1)
    data: str | None = None
    weights: str | None = None
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    fit: FitSettings = FitSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    compare: CompareSettings = CompareSettings()


def read_work(file: Path | None) -> WorkSettings:
    """Reads a settings file, JSON or TOML.

    Arguments:
        file: The file; None for the usual settings.

    Returns:
        The settings.

    Raises:
        ConfigError: If it is not there, not readable, or a setting is unknown or out of range.
    """
    if file is None:
        return WorkSettings()
    try:
        text = file.read_text(encoding="utf-8")
        told = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: no settings could be read ({error}). Pass a .json or .toml file."
        ) from error
    if not isinstance(told, Mapping):
        raise ConfigError(
            f"{file}: expected a mapping of settings, found a {type(told).__name__}. Write "
            '{"preset": "carried", "calls": [{"prompt": "a lighthouse"}]}.'
        )
    try:
        return WorkSettings.model_validate(told)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        known = ", ".join(WorkSettings.model_fields)
        raise ConfigError(f"{file}: {problems}. Settings are {known}.") from error


@dataclass(frozen=True)
class Target:
    """What an address stands for.

    Attributes:
        name: What messages call it.
        subject: A pipeline, or a network.
        example_inputs: As for `wrap`.
        sampler: How samples are drawn; None of a network that has none.
        suite: The suite that it comes from, or None.
        data: Batches (images, labels) of a classifier; None where there are none.
    """

    name: str
    subject: Any
    example_inputs: Any
    sampler: SamplerBase | None = None
    suite: Suite | None = None
    data: Any = None

    def with_sampler(self, verb: str) -> SamplerBase:
        """The sampler.

        Arguments:
            verb: What needs it.

        Raises:
            ConfigError: If there is none.
        """
        if self.sampler is None:
            raise ConfigError(
                f"{verb}: {self.name} has no sampler, so nothing can be drawn. Pass the folder of a "
                "diffusers pipeline, or module:function of an exitkit.benchmark.Suite with sampler=; for a "
                "classifier name labelled images in the settings, data='module:function'."
            )
        return self.sampler


def load_target(address: str, work: WorkSettings) -> Target:
    """Finds what an address stands for; nothing is downloaded.

    Arguments:
        address: A folder that `pipe.save_pretrained` has written, `timm/NAME`, or `module:function`.
        work: The settings.

    Returns:
        What it stands for.

    Raises:
        ConfigError: If there is nothing at the address.
    """
    folder = Path(address)
    if folder.is_dir():
        return _pipeline(_opened(folder, work), work)
    if address.startswith(PREFIX):
        network, inputs = timm_model(address.removeprefix(PREFIX))
        if work.weights is not None:
            _load_weights(network, Path(work.weights))
        images = tuple(x.to(work.device) for x in inputs)
        data = None if work.data is None else load_named(work.data)
        return Target(address, network.to(work.device), images, data=data)
    suite = load_named(address)
    if is_pipeline(suite):
        return _pipeline(suite.to(work.device), work)
    if not isinstance(suite, Suite):
        raise ConfigError(
            f"{address!r} gives {type(suite).__name__}, expected a diffusers pipeline or an "
            "exitkit.benchmark.Suite."
        )
    network = suite.backbone().to(work.device)
    return Target(suite.name, network, suite.example_inputs, suite.sampler, suite)


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"weights: {file} holds no weights of this {type(network).__name__} ({error}). Pass what "
            "safetensors.torch.save_file(network.state_dict(), file) has written."
        ) from error


def _opened(folder: Path, work: WorkSettings) -> Any:
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"{folder} holds no model_index.json, so it is no diffusers pipeline. Pass a folder that "
            "pipe.save_pretrained(folder) has written."
        )
    import torch

    library = require("diffusers", "diffusers", "A diffusers pipeline")
    pipe = library.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return pipe.to(device=work.device, dtype=getattr(torch, work.dtype))


def _pipeline(pipe: Any, work: WorkSettings) -> Target:
    sampler = PipelineSampler(pipe, work.calls, rows=work.rows, **work.call)
    example = {**work.calls[0], **work.call}
    return Target(type(pipe).__name__, pipe, example, sampler)
