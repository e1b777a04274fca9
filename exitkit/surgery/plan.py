"""Merges the views of a backbone into a frozen plan, with a reason for everything refused."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from exitkit.errors import UnsupportedBackboneError, expect, suggest
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.another_size import rows_at_another_size
from exitkit.surgery.batch_axes import whole_leaf
from exitkit.surgery.boundaries import find_boundaries
from exitkit.surgery.branches import join_branches
from exitkit.surgery.dry_run import CallRecord, undisturbed
from exitkit.surgery.evidence import gather
from exitkit.surgery.hidden_path import describe_calls
from exitkit.surgery.independence import ROWS, row_list
from exitkit.surgery.inputs import is_time
from exitkit.surgery.padded_rows import padded_stages, told
from exitkit.surgery.prediction import planned_prediction
from exitkit.surgery.probe import Probe, probe
from exitkit.surgery.registry import MAKE, registry
from exitkit.surgery.resampling import join_resampling
from exitkit.surgery.rows_alone import check_rows_alone
from exitkit.surgery.spec import Boundary, Call, Leaf, Plan, Stage
from exitkit.surgery.stages import Group, Grouping, find_stages
from exitkit.surgery.tracing import check_agreement


def make_plan(model: nn.Module, example_inputs: Any, adapter: Adapter | None = None) -> Plan:
    """Finds the blocks of a backbone and describes them.

    Arguments:
        model: The backbone. It is run, not changed.
        example_inputs: What it is called with.
        adapter: Declarations; looked up in the registry if None.

    Returns:
        The plan, complete in itself.

    Raises:
        TracingError: If the backbone does not run on the example.
        UnsupportedBackboneError: If it has no blocks to skip, or no clear prediction.
        ConfigError: If the adapter declares what is not there.
    """
    if adapter is not None:
        expect("adapter=", adapter, Adapter, "an adapter or None", MAKE)
    adapter = adapter or registry.resolve(model)
    with undisturbed(model):
        return plan_of(model, probe(model, example_inputs, adapter), adapter)


def plan_of(model: nn.Module, seen: Probe, adapter: Adapter | None = None) -> Plan:
    """Makes the plan from dry runs.

    Arguments:
        model: The backbone.
        seen: Its dry runs.
        adapter: Declarations about it, or None.

    Returns:
        The plan.
    """
    if adapter and adapter.blocks:
        grouping = _declared(model, seen, adapter)
    else:
        found = find_stages(seen.base, seen.perturbed)
        found = join_resampling(seen.base, seen.perturbed, found)
        grouping = join_branches(seen.base, seen.perturbed, found)
    with undisturbed(model):
        view = check_agreement(
            model, tuple(seen.base.calls[i].path for g in grouping.groups for i in g.calls)
        )
    views = [f"dry runs found {len(grouping.groups)} stages", view, seen.counted]
    if seen.base.unwatched:
        views.append(f"too large to be watched for changes: {', '.join(seen.base.unwatched[:3])}")
    declared = adapter.timestep if adapter else None
    if seen.timestep and not declared and not is_time(seen.timestep):
        views.append(f"timestep {seen.timestep!r} is told by what it moves, not by its name")
    if not seen.batch.batched:
        views.append("one packed sequence: exits per call")
    return _assemble(model, seen, grouping, tuple(views), adapter)


def _declared(model: nn.Module, seen: Probe, adapter: Adapter) -> Grouping:
    groups = [
        Group(call.path, None, (i,))
        for i, call in enumerate(seen.base.calls)
        if any(_matches(call.path, pattern) for pattern in adapter.blocks or ())
    ]
    if len(groups) < 2:
        paths = [c.path for c in seen.base.calls]
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: adapter {adapter.name!r} declares blocks "
            f"{adapter.blocks}, which match {len(groups)} calls."
            f"{suggest((adapter.blocks or ('',))[0], paths)} Two or more are needed."
        )
    return Grouping("", tuple(groups), ())


def _matches(path: str, pattern: str) -> bool:
    """Whether a dotted path fits a pattern in which `*` stands for one name, not for several."""
    names, parts = path.split("."), pattern.split(".")
    return len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts))


def _assemble(
    model: nn.Module,
    seen: Probe,
    grouping: Grouping,
    views: tuple[str, ...],
    adapter: Adapter | None,
) -> Plan:
    calls, root = seen.base.calls, seen.base.calls[0]
    macs = seen.macs(0)
    flat = [i for g in grouping.groups for i in g.calls]
    described = describe_calls(seen, flat)
    check_rows_alone(model, seen, described)
    names = _names([g.path for g in grouping.groups])
    outputs = _outputs(seen)
    inputs, noisy = _inputs(seen, root), _stem(seen.batch.noisy, seen.batch.lists)
    shape = next(leaf.shape for leaf in inputs if leaf.path == noisy)
    prediction = planned_prediction(
        type(model).__name__,
        outputs,
        shape,
        seen.timestep is not None,
        adapter.prediction if adapter else None,
    )
    predicted = next(leaf for leaf in outputs if leaf.path == prediction)
    grouped = [[described[i] for i in g.calls] for g in grouping.groups]
    evidence = gather(model, seen, grouped, predicted)
    stages = tuple(
        Stage(
            n,
            names[n - 1],
            type(calls[g.calls[-1]].module).__name__,
            tuple(evidence.stages[n - 1]),
            sum(seen.macs(i) for i in g.calls),
        )
        for n, g in enumerate(grouping.groups, 1)
    )
    modules = [calls[g.calls[-1]].module for g in grouping.groups]
    boundaries = find_boundaries(
        stages, modules, macs, evidence, rows_at_another_size(model, seen, stages)
    )
    usable = [b for b in boundaries if b.usable]
    if not usable:
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: none of its {len(stages)} stages can carry an exit: "
            + "; ".join(f"{b.path}: {b.reason}" for b in boundaries)
            + ". Declare the hidden state with an adapter: ek.Adapter(name, matches, ...)."
        )
    padded = padded_stages(model, seen, stages)
    doubt = told(stages, padded)
    return Plan(
        class_name=type(model).__name__,
        inputs=inputs,
        noisy=noisy,
        timestep=seen.timestep,
        timestep_scale=seen.timestep_scale,
        outputs=outputs,
        prediction=prediction,
        stages=stages,
        boundaries=boundaries,
        macs=macs,
        mechanism=_mechanism(usable),
        in_place=_in_place(seen, flat, described),
        rejected=grouping.rejected,
        views=(*views, evidence.view),
        lists=seen.batch.lists,
        batched=seen.batch.batched,
        timestep_origin=seen.timestep_origin,
        doubts=(*seen.doubts, doubt) if doubt else seen.doubts,
        padded=padded,
    )


def _mechanism(usable: list[Boundary]) -> Literal["tail", "attached", "mixed"]:
    if all(b.lands for b in usable):
        return "tail"
    return "mixed" if any(b.lands for b in usable) else "attached"


def _in_place(seen: Probe, flat: list[int], described: dict[int, Call]) -> bool:
    tokens = {
        leaf.token
        for i in flat
        for path, leaf in seen.base.calls[i].outputs.items()
        if path == described[i].hidden_out
    }
    return bool(tokens & seen.base.written)


def _names(paths: list[str]) -> list[str]:
    """The paths, with the number of the visit behind those that come more than once."""
    visits: Counter[str] = Counter()
    names = []
    for path in paths:
        names.append(f"{path}#{visits[path]}" if paths.count(path) > 1 else path)
        visits[path] += 1
    return names


def _stem(path: str, lists: tuple[str, ...]) -> str:
    """The list that a path leads into, if it is a list of rows; else the path."""
    name = path.split("[")[0]
    return name if name in lists else path


def _inputs(seen: Probe, root: CallRecord) -> tuple[Leaf, ...]:
    found: dict[str, Leaf] = {}
    for path, leaf in root.inputs.items():
        stem, dtype = _stem(path, seen.batch.lists), str(leaf.dtype).removeprefix("torch.")
        noisy = path == seen.batch.noisy
        if noisy and not seen.batch.batched:
            found[path] = replace(whole_leaf(path, leaf, None), moved=True)
        elif stem == path:
            axis = seen.batch.axes.get(path)
            fold = seen.batch.folds.get(path, 1)
            found[path] = Leaf(path, leaf.shape, dtype, axis, fold, moved=noisy)
        elif path == f"{stem}[0]":
            shape = (ROWS, *leaf.shape)
            found[stem] = Leaf(stem, shape, dtype, 0, moved=noisy, listed=True)
    return tuple(found.values())


def _outputs(seen: Probe) -> tuple[Leaf, ...]:
    stem = row_list(seen.base, seen.other)
    outputs = seen.leaves(0, "outputs")
    if stem is None:
        return outputs
    first = next(leaf for leaf in outputs if leaf.path == f"{stem}[0]")
    stacked = Leaf(stem, (ROWS, *first.shape), first.dtype, 0, moved=first.moved, listed=True)
    return (stacked, *(leaf for leaf in outputs if not leaf.path.startswith(f"{stem}[")))
