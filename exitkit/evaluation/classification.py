"""Comparisons of classifiers: accuracy against executed MACs on the same labelled images.

Every dynamic policy brings its static opponents: the exit that it mostly takes (a classifier has no
timestep, so its mode schedule is one exit), and the exit of about its cost. Both are read from the
depths that the policy took on the images compared, without their labels: that favours them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation import scores
from exitkit.evaluation.baselines import executed_macs, nearest_exit
from exitkit.evaluation.entries import Entry, Rival, check_wrapped, wrapped_around
from exitkit.evaluation.evaluation_set import EvaluationSet, Runs
from exitkit.evaluation.facts import command, of_entries, parameters
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.rows import Kind, Row
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import FULL, FixedExit, NeverExit
from exitkit.sampling.network import call_form, placement
from exitkit.training.batches import split_labelled

WHERE = "compare"


@dataclass(frozen=True)
class Batch:
    """Images and their classes."""

    images: Tensor
    labels: Tensor
    named: dict[str, Any]

    def on(self, module: nn.Module) -> tuple[Tensor, dict[str, Any]]:
        """Images and further arguments, where a module computes."""
        device, dtype = placement(module)
        return self.images.to(device, dtype), self.named


@dataclass(frozen=True)
class LabelledSet(EvaluationSet):
    """Batches of images with their classes.

    Attributes:
        loader: Tuples (images, labels) or dictionaries of them, read repeatedly.
        metrics: What is measured.
        labels: True classes of all images, in the order of the first reading, (n,).
        sizes: Images of each batch.

    Raises:
        ConfigError: If the loader can be read only once, is empty, or has no labels.
    """

    loader: Iterable[Any]
    metrics: Metrics
    labels: Tensor = field(init=False)
    sizes: tuple[int, ...] = field(init=False)

    repeats: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if iter(self.loader) is self.loader:
            raise ConfigError(
                f"{WHERE} reads the batches several times, but these are used up after the first "
                f"({type(self.loader).__name__}). Pass a DataLoader or a list of batches."
            )
        labels = [batch.labels.cpu() for batch in self.batches()]
        object.__setattr__(self, "labels", torch.cat(labels))
        object.__setattr__(self, "sizes", tuple(map(len, labels)))

    @property
    def batch_count(self) -> int:
        return len(self.sizes)

    def batches(self) -> Iterator[Batch]:
        empty = True
        for batch in self.loader:
            empty = False
            yield Batch(*split_labelled(batch, WHERE))
        if empty:
            raise ConfigError(
                f"{WHERE}: the batches are empty. Pass a DataLoader or a list of (images, labels) with "
                "at least one batch, which can be read repeatedly."
            )

    def run(self, rival: Rival, batch: Batch) -> tuple[Tensor, Trace | None]:
        images, named = batch.on(rival.module)
        with rival.acting():
            logits = call_form(rival.module).prediction(rival.module(images, **named))
        if logits.dim() != 2 or len(logits) != len(images):
            raise ShapeError(
                f"{WHERE}: {rival.name!r} returned {tuple(logits.shape)} for {len(images)} images, "
                "expected logits (B, classes)."
            )
        return logits, rival.module.trace if isinstance(rival.module, ExitModel) else None

    def keep(self, rival: Rival, batch: Batch, outputs: Tensor) -> Tensor:
        """Predicted classes, on the CPU, (B,)."""
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= outputs.shape[1]:
            raise ShapeError(
                f"{WHERE}: labels go from {low} to {high}, and {rival.name!r} knows the classes 0 to "
                f"{outputs.shape[1] - 1}."
            )
        return outputs.argmax(dim=1).cpu()

    def warm_up(self, rivals: Sequence[Rival]) -> None:
        first = next(self.batches())
        for rival in rivals:
            self.run(rival, first)

    def line_up(self, entries: Sequence[Entry], full: nn.Module) -> tuple[list[Rival], list[str]]:
        first = Rival("full", "full", full, cost=1.0, around=wrapped_around(full, entries))
        lined = [first]
        notes: list[str] = []
        own = [self._itself(entry, entries, first) for entry in entries]
        pilots = self._pilots([rival for rival in own if rival.policy is not None])
        last = {id(rival.module): rival.name for rival in own}
        for entry, rival in zip(entries, own, strict=True):
            model = rival.module
            if not isinstance(model, ExitModel):
                lined.append(rival)
                continue
            trace = pilots[rival.name]
            lined += _with_opponents(entry, rival, model, trace)
            notes += _notes(rival, trace)
            if model.exit_config.loss.train_backbone and last[id(model)] == rival.name:
                # How far fine-tuning alone moved it.
                name = f"{rival.model}, no exit"
                lined.append(Rival(name, "no exit", model, NeverExit(), model=rival.model))
        names = [rival.name for rival in lined]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"{WHERE}: two rows are called {', '.join(twice)}. Rename the entries."
            )
        return lined, notes

    def _itself(self, entry: Entry, entries: Sequence[Entry], full: Rival) -> Rival:
        check_wrapped(entry)
        model, family = entry.model, entry.family or entry.name
        if not isinstance(model, ExitModel):
            around = wrapped_around(model, entries)
            rival = Rival(entry.name, "network", model, family=family, around=around)
            self.run(rival, next(self.batches()))  # refuses what is no classifier
            return replace(rival, cost=self._macs(rival) / self._macs(full))
        models = {id(e.model): e.model for e in entries if isinstance(e.model, ExitModel)}
        preset = model.exit_config.preset
        alike = [key for key, m in models.items() if m.exit_config.preset == preset]
        label = preset if len(alike) == 1 else f"{preset} ({alike.index(id(model)) + 1})"
        return Rival(entry.name, "policy", model, entry.acting, family, label)

    def _macs(self, rival: Rival) -> float:
        """Multiply-accumulates of one image."""
        images, named = next(self.batches()).on(rival.module)
        with rival.acting():
            return executed_macs(lambda: rival.module(images, **named)) / len(images)

    def _pilots(self, rivals: Sequence[Rival]) -> dict[str, Trace]:
        traces: dict[str, list[Trace]] = {rival.name: [] for rival in rivals}
        for batch in self.batches():
            for rival in rivals:
                _, trace = self.run(rival, batch)
                assert trace is not None
                traces[rival.name].append(trace)
        return {name: Trace.join(found) for name, found in traces.items()}

    def rows(self, rivals: Sequence[Rival], runs: Runs) -> list[Row]:
        full = self._macs(next(rival for rival in rivals if rival.kind == "full"))
        return [
            scores.classified(rival, runs, self.labels, full, len(self.sizes), self.metrics)
            for rival in rivals
        ]

    def facts(self, entries: Sequence[Entry], full: nn.Module, runs: Runs) -> dict[str, str]:
        sizes = self.sizes
        size = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        return {
            "command": command(),
            "full model": f"{type(full).__name__}, {parameters(full)}",
            "images": f"{len(self.labels)} of {len(self.labels.unique())} classes, in {len(sizes)} "
            f"batches of {size}",
            "intervals": "95 %, percentile bootstrap over images, 2000 resamples, seed "
            f"{self.metrics.seed}; differences in pairs",
            "opponents": "mode schedules and fixed exits are read from the depths that a policy "
            "takes on these images, without labels",
            **of_entries(entries),
        }


def _with_opponents(entry: Entry, rival: Rival, model: ExitModel, trace: Trace) -> list[Rival]:
    # Nobody is asked under a static policy, and one that never lets go is the full model.
    if not trace.decisions or bool((trace.depth > trace.exits).all()):
        return [rival]
    mode = int(trace.depth.flatten().mode().values)
    near = nearest_exit(model, trace.cost)
    where = f"exit {mode}" if mode <= trace.exits else "to the end"

    def static(tail: str, kind: Kind, depth: int) -> Rival:
        return replace(
            rival,
            name=rival.name + tail,
            kind=kind,
            policy=FixedExit(depth if depth <= trace.exits else FULL),
        )

    found = []
    if entry.static in (True, "schedule"):
        found.append(static(f", its schedule ({where})", "mode schedule", mode))
    if entry.static in (True, "fixed exit") and (near != mode or not found):
        found.append(static(f", always exit {near}", "fixed exit", near))
    return [replace(rival, opponent=found[-1].name if found else None), *found]


def _notes(rival: Rival, trace: Trace) -> list[str]:
    found = []
    if trace.oracle:
        found.append(
            f"{rival.name!r} looks at what only the full model knows: no method, and a bound for how "
            "close outputs can be, not for accuracy. Its MACs are what they would have been, and it "
            "is not timed."
        )
    if rival.policy is not None and rival.policy.couples_rows:
        found.append(
            f"{rival.name!r} takes one decision for a whole batch: with other batches the same "
            "image gets another depth."
        )
    if trace.decisions and bool((trace.depth > trace.exits).all()):
        found.append(f"{rival.name!r} let no image leave early, so it has no static opponent.")
    return found
