"""One row of a comparison as plain data, for generators and classifiers alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["full", "policy", "mode schedule", "fixed exit", "no exit", "fewer steps", "network"]
"""What a row is: the full model, a policy, or something that every policy has to be better than."""


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Mean and bounds, four significant digits each."""
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Ratio:
    """A median of ratios, with the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of those compared, with what was measured. None is what was not, or makes no sense.

    The first group of fields is what every row has, the second belongs to generated samples, the
    third to classified images.

    Attributes:
        name: Unique among the rows.
        kind: What it is.
        family: The curve of the entry it belongs to; empty for the full model and for fewer steps.
        count: Number of samples (seeds, or images) behind every number.
        cost: Executed MACs over those of the full run, heads included.
        layers: Executed blocks over those of the full run; None for another network.
        clock: Wall clock over that of the bare full model, batch by batch.
        distance: Mean distance to the full model's outputs, with a 95 % bootstrap interval over
            samples: the root mean square difference of two samples of one seed, or the share of
            images that get another class.
        agreement: Share of samples that get the full model's class, right or wrong.
        sampler: Name of the sampler.
        steps: Sampler steps.
        against_steps: Distance over that of the same sampler with fewer steps at equal cost.
        frechet: Frechet distance to the reference images.
        kernel: Kernel distance to them, unbiased, with a 95 % bootstrap interval over samples.
        confidence: Mean largest class probability.
        timestep_share: Share of the depth variance that the timestep explains; None where depth
            does not vary.
        model: Which wrapped model it runs, by its preset; empty for other networks.
        accuracy: Share of right classes, with a 95 % bootstrap interval over images.
        against_full: Accuracy minus the full model's on the same images, resampled in pairs.
        against_fixed: A policy's accuracy minus that of the fixed exit of about its cost, likewise.
        depth: Mean depth in exits, where K + 1 ran to the end; None for other networks.
        class_share: Share of the depth variance that the true class explains; None where depth does
            not vary. C equally large classes explain (C - 1) / (n - 1) of it by chance alone.
        host_checks: How often a batch waited for a decision; None for other networks.
    """

    name: str
    kind: Kind
    family: str = ""
    count: int
    cost: float
    layers: float | None = None
    clock: Ratio | None = None
    distance: Interval
    agreement: float | None = None

    sampler: str = ""
    steps: int | None = None
    against_steps: Interval | None = None
    frechet: float | None = None
    kernel: Interval | None = None
    confidence: float | None = None
    timestep_share: float | None = None

    model: str = ""
    accuracy: Interval | None = None
    against_full: Interval | None = None
    against_fixed: Interval | None = None
    depth: float | None = None
    class_share: float | None = None
    host_checks: float | None = None
