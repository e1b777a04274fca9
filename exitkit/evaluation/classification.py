"""Classifiers with exits under the same images: accuracy against executed MACs.

All rivals take turns batch by batch in one process, so that the wall clock is comparable, and every
difference is paired: the same image under two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation.baselines import executed_macs
from exitkit.evaluation.classifiers import (
    WHERE,
    ClassRival,
    Outcome,
    evaluating,
    labelled,
    line_up,
)
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.facts import command, in_words, machine
from exitkit.evaluation.metrics import bootstrap
from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Row
from exitkit.evaluation.timing import Stopwatch, foreign_share, machine_times, now, rotated
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel

__all__ = ["Comparison", "Entry", "Row", "compare_classifiers"]


def compare_classifiers(
    entries: Sequence[Entry],
    batches: Iterable[Any],
    *,
    baseline: nn.Module | None = None,
    repeats: int = 3,
    seed: int = 0,
    title: str = "Early exit of classifiers, compared",
    progress: bool = True,
) -> Comparison:
    """Runs classifiers with exits against the full model and against static exits.

    Every dynamic policy stands beside its own mode schedule, which always takes the exit that the
    policy mostly takes, and beside the fixed exit of about its cost (one row where they coincide).
    Wrapped models whose backbone was fine-tuned also run without exits. Models run in eval mode;
    flags and policies are put back.

    Arguments:
        entries: Wrapped classifiers with their policies; or other networks, called as
            `network(images)`.
        batches: Pairs (images, labels) or dictionaries of them, that can be read repeatedly: a list
            or a DataLoader. Policies that decide for whole batches depend on their size.
        baseline: The bare full model; the first wrapped entry's backbone if None. Pass the network
            from before the fine-tuning, where there was one.
        repeats: How often the batches are read for the wall clock, at least 1. Answers and accounts
            are those of the first time.
        seed: Seed of the bootstrap over images.
        title: Heading of the report.
        progress: Whether to show a progress bar.

    Returns:
        The comparison; print it, or take rows by name.

    Raises:
        ConfigError: If names repeat, there is nothing to compare, or batches can be read only once
            or have no labels.
        ShapeError: If a model returns no logits, or a label lies beyond its classes.

    Example::

        compare_classifiers([Entry("entropy", model, EntropyThreshold(0.1))], loader)
    """
    entries = list(entries)
    full = _checked(entries, batches, baseline, repeats)
    modules = {id(m): m for m in (full, *(entry.model for entry in entries))}
    with evaluating(modules.values()):
        rivals, notes = line_up(entries, full, batches)
        race = _race(rivals, batches, repeats, progress)
        macs = {
            id(c.module): _row_macs(c.module, batches)
            for c in rivals
            if c.kind in ("full", "network")
        }
    rows = tuple(_row(c, race, macs, seed) for c in rivals)
    return Comparison(
        rows=rows,
        title=title,
        notes=tuple(notes),
        settings=_settings(entries, full, race, seed),
        machine=machine(race.watch),
        traces={c.name: t for c in rivals if (t := race.trace(c.name)) is not None},
    )


def _checked(
    entries: Sequence[Entry], batches: Iterable[Any], baseline: nn.Module | None, repeats: int
) -> nn.Module:
    """Checks the arguments and returns the bare full model."""
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"{WHERE}: entries need names that differ, got {', '.join(names) or 'none'}."
        )
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ConfigError(
            f"{WHERE}: repeats must be a whole number of at least 1, got {repeats!r}."
        )
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise ConfigError(
            f"{WHERE}: batches is a {type(batches).__name__}, expected a DataLoader or a list of "
            "(images, labels)."
        )
    if iter(batches) is batches:
        raise ConfigError(
            f"{WHERE} reads the batches {repeats + 1} times, but these are used up after the first "
            f"({type(batches).__name__}). Pass a DataLoader or a list of batches."
        )
    wrapped = next((e.model for e in entries if isinstance(e.model, ExitModel)), None)
    full = baseline if baseline is not None else wrapped
    if full is None:
        raise ConfigError(
            f"{WHERE}: without a wrapped model among the entries it needs baseline=, the full model."
        )
    return full.backbone if isinstance(full, ExitModel) else full


@dataclass
class _Race:
    """What came back.

    Attributes:
        outcomes: By name of the rival that ran.
        ran: ClassRival to the one that did the same work and ran.
        labels: True classes, (n,).
        watch: Seconds of everybody who ran, by batch.
        sizes: Images of each batch.
    """

    outcomes: dict[str, Outcome]
    ran: dict[str, str]
    labels: Tensor
    watch: Stopwatch
    sizes: list[int]

    def classes(self, name: str) -> Tensor:
        """Predicted classes, (n,)."""
        return torch.cat(self.outcomes[self.ran[name]].classes)

    def right(self, name: str) -> Tensor:
        """1 where the predicted class is the true one, (n,)."""
        return (self.classes(name) == self.labels).double()

    def trace(self, name: str) -> Trace | None:
        """What was executed, all images side by side; None for networks that are not wrapped."""
        traces = self.outcomes[self.ran[name]].traces
        return Trace.join(traces) if traces else None


def _race(
    rivals: Sequence[ClassRival], batches: Iterable[Any], repeats: int, progress: bool
) -> _Race:
    ran = {c.name: next(other.name for other in rivals if c.runs_like(other)) for c in rivals}
    runners = {c.name: c for c in rivals if ran[c.name] == c.name}
    outcomes = {name: Outcome() for name in runners}
    race = _Race(outcomes, ran, torch.empty(0), Stopwatch(), [])
    labels: list[Tensor] = []
    turn = 0
    with tqdm(desc="compare", unit="batch", disable=not progress) as bar:
        for repeat in range(repeats):
            for batch in labelled(batches):
                before = machine_times()
                for name in rotated(list(runners), turn):
                    rival = runners[name]
                    images, named = batch.on(rival.module)
                    if turn == 0:  # The first call of all pays for what is made once.
                        rival.answer(images, named)
                    start = now()
                    logits, trace = rival.answer(images, named)
                    race.watch.seconds.setdefault(name, []).append(now() - start)
                    if repeat:
                        continue
                    _check_labels(batch.labels, logits, name)
                    outcomes[name].classes.append(logits.argmax(dim=1).cpu())
                    if trace is not None:
                        outcomes[name].traces.append(trace)
                race.watch.foreign.append(foreign_share(before, machine_times()))
                if not repeat:
                    labels.append(batch.labels.cpu())
                    race.sizes.append(len(batch.labels))
                turn += 1
                bar.update()
    race.labels = torch.cat(labels)
    return race


def _check_labels(labels: Tensor, logits: Tensor, name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ShapeError(
            f"{WHERE}: labels go from {low} to {high}, and {name!r} knows the classes 0 to "
            f"{logits.shape[1] - 1}."
        )


def _row_macs(module: nn.Module, batches: Iterable[Any]) -> float:
    """Multiply-accumulates of one image."""
    images, named = next(labelled(batches)).on(module)
    return executed_macs(lambda: module(images, **named)) / len(images)


def _row(rival: ClassRival, race: _Race, macs: dict[int, float], seed: int) -> Row:
    name = rival.name
    right, trace = race.right(name), race.trace(name)
    executed = macs[id(rival.module)] if trace is None else trace.macs / len(right)
    whole = race.right("full")
    fixed = None if rival.fixed is None else right - race.right(rival.fixed)
    reference = next(iter(macs.values()))
    dynamic = trace is not None and rival.kind == "policy" and trace.decisions > 0
    same = race.classes(name) == race.classes("full")
    return Row(
        name=name,
        kind=rival.kind,
        family=rival.family,
        model=rival.model,
        count=len(right),
        accuracy=bootstrap(right, seed=seed),
        against_full=bootstrap(right - whole, seed=seed),
        against_fixed=None if fixed is None else bootstrap(fixed, seed=seed),
        distance=bootstrap((~same).double(), seed=seed),
        agreement=float(same.double().mean()),
        cost=executed / reference,
        layers=trace.layer_ratio if trace else (1.0 if rival.kind == "full" else None),
        depth=float(trace.depth.double().mean()) if trace else None,
        class_share=_share(trace.depth[0], race.labels) if trace and dynamic else None,
        clock=None if trace and trace.oracle else race.watch.ratio(race.ran[name], "full"),
        host_checks=trace.host_checks / len(race.sizes) if trace else None,
    )


def _share(depth: Tensor, labels: Tensor) -> float | None:
    """Share of the variance of depth that the class explains, in [0, 1]; None without variance."""
    depth = depth.double().cpu()
    total = float(depth.var(correction=0))
    if total == 0:
        return None
    groups = [depth[labels == label] for label in labels.unique()]
    within = sum(float(g.var(correction=0)) * len(g) for g in groups) / len(depth)
    return 1 - within / total


def _settings(entries: Sequence[Entry], full: nn.Module, race: _Race, seed: int) -> dict[str, str]:
    sizes = race.sizes
    size = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    facts = {
        "command": command(),
        "full model": f"{type(full).__name__}, {_millions(full)}",
        "images": f"{len(race.labels)} of {len(race.labels.unique())} classes, in {len(sizes)} "
        f"batches of {size}",
        "intervals": f"95 %, percentile bootstrap over images, 2000 resamples, seed {seed}; "
        "differences in pairs",
        "opponents": "mode schedules and fixed exits are read from the depths that a policy takes on "
        "these images, without labels",
    }
    for entry in entries:
        if isinstance(entry.model, ExitModel) and entry.acting is not None:
            facts[f"policy of {entry.name}"] = in_words(entry.acting)
        else:
            facts[f"network of {entry.name}"] = (
                f"{type(entry.model).__name__}, {_millions(entry.model)}"
            )
    return facts


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
