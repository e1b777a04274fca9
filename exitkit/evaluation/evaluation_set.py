"""What a comparison runs on, and the runs: seeds through samplers, or labelled images.

All rivals run in turn batch by batch in one process, so that the wall clock is comparable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from exitkit.evaluation.entries import Entry, Rival
from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.evaluation.rows import Ratio, Row
from exitkit.evaluation.timing import Stopwatch
from exitkit.execution.trace import Trace


@dataclass(frozen=True)
class Runs:
    """What came back.

    Attributes:
        outputs: By name of the rival: what was kept of its outputs, (n, ...), all batches.
        traces: By name of the rival: what was executed, all samples side by side; of wrapped models.
        watch: Seconds by batch of those who ran.
        same: Rival to the one that did the very same work and ran for both.
    """

    outputs: Mapping[str, Tensor]
    traces: Mapping[str, Trace]
    watch: Stopwatch
    same: Mapping[str, str]

    def clock(self, name: str, full: str) -> Ratio:
        """Wall clock of a rival over that of the full model."""
        return self.watch.ratio(self.same[name], self.same[full])


class EvaluationSet(ABC):
    """What a comparison runs on: the batches, how a rival runs on one, and what its row says.

    Attributes:
        repeats: How often everything runs for the clock where nobody says how often.
    """

    repeats: ClassVar[int] = 1

    @property
    def amount(self) -> str:
        """How much a rival runs, in words for the progress bar."""
        return ""

    @abstractmethod
    def line_up(self, entries: Sequence[Entry], full: nn.Module) -> tuple[list[Rival], list[str]]:
        """Lists the full model, then every entry with its opponents.

        Arguments:
            entries: The entries, their policies finished.
            full: The bare full model.

        Returns:
            The rivals, with unique names, and what is to be noted about them.

        Raises:
            ConfigError: If an entry with a policy is no wrapped model, or names repeat.
        """

    @property
    @abstractmethod
    def batch_count(self) -> int:
        """How many batches there are."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Reads all batches once."""

    @abstractmethod
    def run(self, rival: Rival, batch: Any) -> tuple[Tensor, Trace | None]:
        """Runs a rival on a batch.

        Arguments:
            rival: The rival.
            batch: The batch.

        Returns:
            Its outputs, (B, ...), and what was executed if its model is wrapped.
        """

    @abstractmethod
    def keep(self, rival: Rival, batch: Any, outputs: Tensor) -> Tensor:
        """What is kept of the outputs, on the CPU, (B, ...); not timed."""

    @abstractmethod
    def warm_up(self, rivals: Sequence[Rival]) -> None:
        """Lets those run once whose first call pays for what is made once."""

    @abstractmethod
    def rows(self, rivals: Sequence[Rival], runs: Runs) -> list[Row]:
        """Measures what came back, one row each."""

    @abstractmethod
    def facts(self, entries: Sequence[Entry], full: nn.Module, runs: Runs) -> dict[str, str]:
        """What was run, by name, in words that do not depend on the machine."""

    def notes(self, runs: Runs) -> list[str]:
        """Warns where a measure cannot tell rivals apart.

        Arguments:
            runs: What came back.

        Returns:
            The warnings, in sentences.
        """
        return []

    def pictures(self, runs: Runs) -> dict[str, Tensor]:
        """Row name to the samples that the report shows."""
        return {}

    def depths(self, rivals: Sequence[Rival], runs: Runs) -> dict[str, DepthMap]:
        """Policy name to its depths along the trajectory."""
        return {}

    def exits(
        self, entries: Sequence[Entry], progress: bool = False
    ) -> tuple[dict[str, LayerErrors], dict[str, UncertaintyMaps]]:
        """Errors of single exits along the trajectory, and uncertainty maps, by entry."""
        return {}, {}


def run_all(
    rivals: Sequence[Rival], on: EvaluationSet, repeats: int | None, progress: bool
) -> Runs:
    """Runs all rivals batch by batch, each batch starting at another one.

    Arguments:
        rivals: The rivals; of those that do the very same work one runs.
        on: What they run on.
        repeats: How often the batches are read for the clock; outputs and accounts are those of the
            first time. What is usual if None.
        progress: Whether to show a progress bar.

    Returns:
        What came back.
    """
    same = {r.name: next(other.name for other in rivals if r.runs_like(other)) for r in rivals}
    runners = {r.name: r for r in rivals if same[r.name] == r.name}
    outputs: dict[str, list[Tensor]] = {name: [] for name in runners}
    traces: dict[str, list[Trace]] = {name: [] for name in runners}
    watch = Stopwatch()
    on.warm_up(list(runners.values()))
    rounds = range(repeats or on.repeats)
    total = len(rounds) * on.batch_count * len(runners)
    with tqdm(total=total, desc="compare", unit="run", disable=not progress) as bar:

        def done(name: str) -> None:
            bar.set_postfix_str(f"{name}, {on.amount}" if on.amount else name)
            bar.update()

        for repeat in rounds:
            for batch in on.batches():
                calls = {name: partial(on.run, rival, batch) for name, rival in runners.items()}
                for name, (output, trace) in watch.round(calls, done).items():
                    if repeat:
                        continue
                    outputs[name].append(on.keep(runners[name], batch, output))
                    if trace is not None and runners[name].policy is not None:
                        traces[name].append(trace)
    joined = {name: torch.cat(parts) for name, parts in outputs.items()}
    accounts = {name: Trace.join(parts) for name, parts in traces.items() if parts}
    return Runs(
        {name: joined[ran] for name, ran in same.items()},
        {name: accounts[ran] for name, ran in same.items() if ran in accounts},
        watch,
        same,
    )
