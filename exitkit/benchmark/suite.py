"""What a comparison needs to know about a backbone: how it is made, called, trained and judged."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from exitkit.benchmark.methods import Use
from exitkit.errors import ConfigError
from exitkit.evaluation.metrics import Metrics
from exitkit.sampling.sampler import SamplerBase
from exitkit.training.tasks import Task


def _plain() -> Metrics:
    return Metrics(exits=False)


@dataclass(frozen=True)
class Suite:
    """One backbone with its data: a generator with its sampler, or a classifier with its images.

    Attributes:
        name: What tables call it.
        backbone: Makes the trained backbone anew, in eval mode.
        example_inputs: What it is called with, as for `wrap`.
        task: What it was trained to predict.
        loader: Makes a loader of training data, given a batch size and a seed.
        sampler: How samples are drawn, of a generator.
        tuning: Makes batches that no weight was fitted to, to calibrate on, of a classifier.
        held_out: Makes batches to compare on, of a classifier.
        metrics: Makes what is measured beside cost, distance and wall clock.
        networks: Other networks that compete as they are, by name: each is made when needed.

    Raises:
        ConfigError: If it has neither a sampler nor both kinds of batches, or all of them.
    """

    name: str
    backbone: Callable[[], nn.Module]
    example_inputs: Any
    task: Task
    loader: Callable[[int, int], Any]
    sampler: SamplerBase | None = None
    tuning: Callable[[], Any] | None = None
    held_out: Callable[[], Any] | None = None
    metrics: Callable[[], Metrics] = _plain
    networks: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batches = (self.tuning is not None, self.held_out is not None)
        if batches != (self.sampler is None,) * 2:
            raise ConfigError(
                f"Suite {self.name!r}: give sampler=, for a generator, or tuning= and held_out=, two "
                "different sets of labelled batches, for a classifier."
            )

    @property
    def use(self) -> Use:
        """What its backbone does."""
        return "classification" if self.sampler is None else "generation"

    def calibrated_on(self) -> Any:
        """What policies are calibrated on, as `calibrate` takes it."""
        return self.sampler if self.tuning is None else self.tuning()

    def compared_on(self) -> Any:
        """What methods are compared on, as `compare` takes it."""
        return self.sampler if self.held_out is None else self.held_out()

    def with_steps(self, steps: int) -> Suite:
        """The suite with another number of sampler steps; a classifier's is returned as it is."""
        if self.sampler is None:
            return self
        return replace(self, sampler=self.sampler.with_steps(steps))


def load_suite(address: str) -> Suite:
    """Finds a suite by its address.

    Arguments:
        address: `package.module:name`, a `Suite`, or a function without arguments that makes one.

    Returns:
        The suite.

    Raises:
        ConfigError: If there is none at that address.
    """
    made = load_named(address)
    if not isinstance(made, Suite):
        raise ConfigError(
            f"{address!r} gives {type(made).__name__}, expected an exitkit.benchmark.Suite."
        )
    return made


def load_named(address: str) -> Any:
    """What is at an address, or what the function there makes.

    Arguments:
        address: `package.module:name`.

    Returns:
        The object.

    Raises:
        ConfigError: If there is none at that address.
    """
    module, _, name = address.partition(":")
    if not module or module.startswith(".") or not name:
        raise ConfigError(
            f"{address!r} is no address of a suite. Expected module:name, for instance "
            "examples.reproduction.models.suites:uvit; the page 'Comparing policies' writes one. A folder "
            "of a pipeline or timm/NAME goes through inspect, fit, calibrate and generate."
        )
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"There is no suite at {address!r}: {type(error).__name__}: {error}. Run from the folder "
            "that holds the module, or install it."
        ) from error
    return found() if callable(found) and not isinstance(found, Suite) else found
