"""Who runs in a comparison of classifiers, and the runs.

Every dynamic policy brings its static opponents: the exit that it mostly takes (a classifier has no
timestep, so its mode schedule is one exit), and the exit of about its cost. Both are read from the
depths that the policy took on the images compared, without their labels: that favours them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation.entries import Entry, acting
from exitkit.evaluation.rows import Kind
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import FULL, FixedExit, NeverExit, Policy
from exitkit.sampling.network import call_form, placement
from exitkit.training.batches import split_labelled

WHERE = "compare_classifiers"


@dataclass(frozen=True)
class ClassRival:
    """One row of the table, before it ran.

    Attributes:
        name: Unique.
        kind: What it is.
        module: What is called: a wrapped model, or another network.
        policy: Policy of a wrapped model.
        family: Name of the entry it belongs to.
        model: Which wrapped model, by its preset.
        fixed: Name of the fixed exit that a policy is compared with.
    """

    name: str
    kind: Kind
    module: nn.Module
    policy: Policy | None = None
    family: str = ""
    model: str = ""
    fixed: str | None = None

    def runs_like(self, other: ClassRival) -> bool:
        """Whether the other does the very same work."""
        return self.module is other.module and self.policy == other.policy

    def answer(self, images: Tensor, named: dict[str, Any]) -> tuple[Tensor, Trace | None]:
        """Classifies a batch that lies where the module computes.

        Arguments:
            images: The batch, (B, ...).
            named: Further arguments.

        Returns:
            The logits, (B, classes), and what was executed if the module is wrapped.

        Raises:
            ShapeError: If it returns no logits.
        """
        with acting(self.module, self.policy):
            logits = call_form(self.module).prediction(self.module(images, **named))
        if logits.dim() != 2 or len(logits) != len(images):
            raise ShapeError(
                f"{WHERE}: {self.name!r} returned {tuple(logits.shape)} for {len(images)} images, "
                "expected logits (B, classes)."
            )
        return logits, self.module.trace if isinstance(self.module, ExitModel) else None


@dataclass
class Outcome:
    """What a rival brought back, batch by batch: predicted classes and accounts."""

    classes: list[Tensor] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)


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


def labelled(batches: Iterable[Any]) -> Iterator[Batch]:
    """Reads the batches once.

    Arguments:
        batches: Tuples (images, labels), or dictionaries.

    Yields:
        The batches.

    Raises:
        ConfigError: If there is none, or one has no labels.
    """
    empty = True
    for batch in batches:
        empty = False
        yield Batch(*split_labelled(batch, WHERE))
    if empty:
        raise ConfigError(
            f"{WHERE}: the batches are empty. Pass a DataLoader or a list of (images, labels) with "
            "at least one batch, which can be read repeatedly."
        )


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts modules into eval mode for a while, every submodule's flag back afterwards."""
    flags = {m: m.training for module in modules for m in module.modules()}
    for module in flags:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def line_up(
    entries: Sequence[Entry], full: nn.Module, batches: Iterable[Any]
) -> tuple[list[ClassRival], list[str]]:
    """Lists the full model, then every entry with its static opponents.

    Arguments:
        entries: The entries.
        full: The bare full model.
        batches: The batches; policies run on them once, to tell their depths.

    Returns:
        The rivals, with unique names, and what is to be noted about them.

    Raises:
        ConfigError: If an entry with a policy is no wrapped model, or names repeat.
    """
    lined = [ClassRival("full", "full", full)]
    notes: list[str] = []
    own = [_itself(entry, entries) for entry in entries]
    pilots = _pilots([c for c in own if isinstance(c.module, ExitModel)], batches)
    last = {id(rival.module): rival.name for rival in own}
    for rival in own:
        model = rival.module
        if not isinstance(model, ExitModel):
            lined.append(rival)
            continue
        trace = pilots[rival.name]
        lined += _with_opponents(rival, model, trace)
        notes += _notes(rival, trace)
        if model.exit_config.loss.train_backbone and last[id(model)] == rival.name:
            # How far fine-tuning alone moved it.
            name = f"{rival.model}, no exit"
            lined.append(ClassRival(name, "no exit", model, NeverExit(), model=rival.model))
    names = [c.name for c in lined]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{WHERE}: two rows are called {', '.join(twice)}. Rename the entries.")
    return lined, notes


def _itself(entry: Entry, entries: Sequence[Entry]) -> ClassRival:
    model = entry.model
    if not isinstance(model, ExitModel):
        if entry.policy is not None:
            raise ConfigError(f"{WHERE}: {entry.name!r} is no wrapped model; use wrap first.")
        return ClassRival(entry.name, "network", model, family=entry.name)
    models = {id(e.model): e.model for e in entries if isinstance(e.model, ExitModel)}
    preset = model.exit_config.preset
    alike = [key for key, m in models.items() if m.exit_config.preset == preset]
    label = preset if len(alike) == 1 else f"{preset} ({alike.index(id(model)) + 1})"
    return ClassRival(entry.name, "policy", model, entry.acting, entry.name, label)


def _pilots(rivals: Sequence[ClassRival], batches: Iterable[Any]) -> dict[str, Trace]:
    traces: dict[str, list[Trace]] = {c.name: [] for c in rivals}
    for batch in labelled(batches):
        for rival in rivals:
            _, trace = rival.answer(*batch.on(rival.module))
            assert trace is not None
            traces[rival.name].append(trace)
    return {name: Trace.join(found) for name, found in traces.items()}


def _with_opponents(rival: ClassRival, model: ExitModel, trace: Trace) -> list[ClassRival]:
    # Nobody is asked under a static policy, and one that never lets go is the full model.
    if not trace.decisions or bool((trace.depth > trace.exits).all()):
        return [rival]
    name, costs = rival.name, [exit.cost for exit in model.exits]
    mode = int(trace.depth.flatten().mode().values)
    near = min(range(len(costs)), key=lambda i: abs(costs[i] - trace.cost)) + 1
    where = f"exit {mode}" if mode <= trace.exits else "to the end"

    def static(tail: str, kind: Kind, depth: int) -> ClassRival:
        policy = FixedExit(depth if depth <= trace.exits else FULL)
        return ClassRival(name + tail, kind, model, policy, rival.family, rival.model)

    found = [static(f", its schedule ({where})", "mode schedule", mode)]
    if near != mode:
        found.append(static(f", always exit {near}", "fixed exit", near))
    first = ClassRival(
        name, "policy", model, rival.policy, rival.family, rival.model, found[-1].name
    )
    return [first, *found]


def _notes(rival: ClassRival, trace: Trace) -> list[str]:
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
