"""Runs the dry runs, merges the views and returns a frozen plan.

Four forwards at most in the common case: the example, the same with row 0 of the noisy input changed,
one row more, and (where there is a timestep) another timestep.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import TracingError, UnsupportedBackboneError, suggest
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import (
    TIMESTEP_NAMES,
    Bound,
    ExampleBatch,
    Inputs,
    bind,
    example_batch,
    find_noisy,
    signature_of,
)
from exitkit.surgery.leaves import learn_leaves
from exitkit.surgery.probing import CallRecord, DryRun, LeafRecord, moved, undisturbed
from exitkit.surgery.registry import registry
from exitkit.surgery.spec import Boundary, Call, HiddenSpec, Leaf, Plan, Stage
from exitkit.surgery.stages import Group, Grouping, find_stages
from exitkit.surgery.tracing import check_agreement

_ROWS, _MORE = 2, 3  # rows of the dry runs


@dataclass
class Probe:
    """The dry runs of a backbone on which a plan rests.

    Attributes:
        batch: The example as a batch.
        base: Two rows.
        perturbed: The same, row 0 of the noisy input changed.
        other: Three rows, with multiply-accumulates counted.
        timestep: Path of the timestep among the arguments, or None.
        timestep_scale: What brings it to 0..1000.
    """

    batch: ExampleBatch
    base: DryRun
    perturbed: DryRun
    other: DryRun
    timestep: str | None
    timestep_scale: float


def probe(model: nn.Module, example_inputs: Any, adapter: Adapter | None = None) -> Probe:
    """Runs a backbone a few times and records what happens inside.

    Arguments:
        model: The backbone; modes, buffers and random generators are restored.
        example_inputs: What the backbone is called with; any batch size of one or more.
        adapter: Declarations to use in place of probing.

    Returns:
        The dry runs.

    Raises:
        TracingError: If the backbone does not run on the example, or runs differ in structure.
        UnsupportedBackboneError: If the rows of a batch depend on each other.
    """
    inputs = Inputs.of(example_inputs)
    bound = bind(signature_of(model.forward), inputs.args, inputs.kwargs)
    noisy = find_noisy(bound, model, adapter.noisy if adapter else None)
    declared = adapter.batch_axis if adapter else None
    ndim = dict(bound.tensors())[noisy].ndim
    axes = [declared] if declared is not None else [0, 1][: max(1, ndim - 1)]
    problems: list[str] = []
    cause: TracingError | None = None
    with undisturbed(model):
        for axis in axes:
            try:
                batch = example_batch(bound, noisy, axis, model)
                found = _probe_axis(model, batch, problems)
            except TracingError as error:
                cause = cause or error
                problems.append(f"axis {axis}: {error}")
                continue
            if found is not None:
                return _with_timestep(model, found, adapter)
    if cause is not None:
        raise cause
    raise UnsupportedBackboneError(
        f"{type(model).__name__}: no axis of {noisy!r} {tuple(dict(bound.tensors())[noisy].shape)} "
        f"counts independent rows ({'; '.join(problems)}). Exits are decided per row, so rows must "
        "not see each other. If the batch is elsewhere, declare Adapter(batch_axis=...)."
    )


def _run(model: nn.Module, inputs: Bound, **options: bool) -> DryRun:
    torch.manual_seed(0)  # inside `undisturbed`: forwards that draw numbers draw the same ones
    return DryRun(model, **options).run(inputs)


def _probe_axis(model: nn.Module, batch: ExampleBatch, problems: list[str]) -> Probe | None:
    two = batch.rows(_ROWS)
    other = _run(model, batch.rows(_MORE), fingerprints=False, count_macs=True)
    base = _run(model, two)
    perturbed = _run(model, two.replaced({batch.noisy: _changed(two, batch)}))
    for run in (perturbed, other):
        if [(c.path, c.nth) for c in run.calls] != [(c.path, c.nth) for c in base.calls]:
            raise TracingError(
                f"{type(model).__name__} calls other modules when the input changes, so its blocks "
                "have no fixed order. Fix the branch (an argument or a mode) and wrap again."
            )
    outputs = learn_leaves(
        base.calls[0].outputs, perturbed.calls[0].outputs, other.calls[0].outputs, _ROWS, _MORE
    )
    if not any(leaf.axis is not None for leaf in outputs):
        problems.append(f"axis {batch.axis}: the output has no axis that grows with it")
        return None
    if _coupled(base, perturbed, other, batch.noisy):
        problems.append(f"axis {batch.axis}: changing one entry changes the others' output")
        return None
    return Probe(batch, base, perturbed, other, None, 1.0)


def _changed(two: Bound, batch: ExampleBatch) -> Tensor:
    noisy = dict(two.tensors())[batch.noisy].clone()
    row = noisy.select(batch.axis, 0)
    row.add_(torch.randn(row.shape, dtype=torch.float32).to(row) * (row.std(correction=0) + 0.5))
    return noisy


def _coupled(base: DryRun, perturbed: DryRun, other: DryRun, noisy: str) -> bool:
    """Whether a change of row 0 reaches another row of any leaf on the way."""
    for a, b, c in zip(base.calls, perturbed.calls, other.calls, strict=True):
        for leaf in learn_leaves(a.outputs, b.outputs, c.outputs, _ROWS, _MORE):
            if leaf.axis is None or not leaf.moved:
                continue
            first, second = a.outputs[leaf.path].prints, b.outputs[leaf.path].prints
            if first is None or second is None or leaf.tiled:
                continue
            rest = slice(leaf.fold, leaf.fold * _ROWS)
            x, y = first[leaf.axis][rest], second[leaf.axis][rest]
            # Rounding may differ with what is beside a row; a real dependence is far larger.
            if bool(((x - y).abs() > 1e-4 * (x.abs() + y.abs() + 1e-6)).any()):
                return True
    return False


def _with_timestep(model: nn.Module, found: Probe, adapter: Adapter | None) -> Probe:
    """Finds the timestep by name and confirms that the backbone listens to it."""
    two = found.batch.rows(_ROWS)
    names = (adapter.timestep,) if adapter and adapter.timestep else TIMESTEP_NAMES
    for name in names:
        value = two.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            continue
        if isinstance(value, Tensor) and value.numel() not in (1, _ROWS):
            continue
        largest = float(value.abs().max()) if isinstance(value, Tensor) else abs(value)
        scale = 1000.0 if 0 < largest <= 1 else 1.0
        other = value * 0.5 + (0.21 if scale > 1 else 7)
        if isinstance(value, Tensor):
            other = torch.as_tensor(other, dtype=value.dtype)
        elif isinstance(value, int):
            other = int(other)
        changed = _run(model, Bound({**two.values, name: other}, two.signature))
        if any(
            moved(leaf, b.outputs[p])
            for a, b in zip(found.base.calls, changed.calls, strict=False)
            for p, leaf in a.outputs.items()
            if p in b.outputs
        ):
            return Probe(found.batch, found.base, found.perturbed, found.other, name, scale)
    return found


def make_plan(
    model: nn.Module, example_inputs: Any, adapter: Adapter | None = None
) -> tuple[Plan, Probe]:
    """Finds the blocks of a backbone and describes them.

    Arguments:
        model: The backbone. It is run, not changed.
        example_inputs: What it is called with.
        adapter: Declarations; looked up in the registry if None.

    Returns:
        The plan and the dry runs it rests on.
    """
    adapter = adapter or registry.resolve(model)
    seen = probe(model, example_inputs, adapter)
    if adapter and adapter.blocks:
        grouping = _declared(model, seen, adapter)
    else:
        grouping = find_stages(seen.base, seen.perturbed)
    with undisturbed(model):
        view = check_agreement(
            model, tuple(seen.base.calls[i].path for g in grouping.groups for i in g.calls)
        )
    return _assemble(
        model, seen, grouping, (f"dry runs found {len(grouping.groups)} stages", view)
    ), seen


def _declared(model: nn.Module, seen: Probe, adapter: Adapter) -> Grouping:
    groups = [
        Group(call.path, None, (i,))
        for i, call in enumerate(seen.base.calls)
        if any(fnmatch.fnmatchcase(call.path, pattern) for pattern in adapter.blocks or ())
    ]
    if len(groups) < 2:
        paths = [c.path for c in seen.base.calls]
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: adapter {adapter.name!r} declares blocks "
            f"{adapter.blocks}, which match {len(groups)} calls."
            f"{suggest((adapter.blocks or ('',))[0], paths)} Two or more are needed."
        )
    return Grouping("", tuple(groups), ())


def _assemble(model: nn.Module, seen: Probe, grouping: Grouping, views: tuple[str, ...]) -> Plan:
    calls, root = seen.base.calls, seen.base.calls[0]
    macs = seen.other.calls[0].macs / _MORE
    flat = [i for g in grouping.groups for i in g.calls]
    hidden = _hidden_chain([calls[i] for i in flat], [seen.perturbed.calls[i] for i in flat])
    described = {
        i: _describe(seen, flat, at, *hidden[at], _residual(calls, flat, at, hidden))
        for at, i in enumerate(flat)
    }
    stages = tuple(
        Stage(
            n,
            g.path
            if len(g.calls) > 1 or calls[g.calls[0]].nth == 0 and not _again(g, grouping)
            else f"{g.path}#{calls[g.calls[0]].nth}",
            type(calls[g.calls[-1]].module).__name__,
            tuple(described[i] for i in g.calls),
            sum(seen.other.calls[i].macs for i in g.calls) / _MORE,
        )
        for n, g in enumerate(grouping.groups, 1)
    )
    outputs = _leaves(seen, 0, "outputs")
    boundaries = _boundaries(stages, grouping, calls, macs)
    usable = [b for b in boundaries if b.usable]
    if not usable:
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: none of its {len(stages)} stages can carry an exit: "
            + "; ".join(f"{b.path}: {b.reason}" for b in boundaries)
            + ". Declare the hidden state with an adapter: exitkit.surgery.Adapter."
        )
    rows = [leaf for leaf in outputs if leaf.axis is not None and "float" in leaf.dtype]
    if not rows:
        raise UnsupportedBackboneError(
            f"{type(model).__name__} returns no floating-point tensor with a batch axis "
            f"({', '.join(f'{o.path} {o.shape}' for o in outputs) or 'no tensor'})."
        )
    prediction = next((leaf for leaf in rows if leaf.moved), rows[0])
    return Plan(
        class_name=type(model).__name__,
        inputs=tuple(_leaf_of_input(seen, path, leaf) for path, leaf in root.inputs.items()),
        noisy=seen.batch.noisy,
        timestep=seen.timestep,
        timestep_scale=seen.timestep_scale,
        outputs=outputs,
        prediction=prediction.path,
        stages=stages,
        boundaries=boundaries,
        macs=macs,
        mechanism="tail" if all(b.lands for b in usable) else "attached",
        rejected=grouping.rejected,
        views=views,
    )


def _again(group: Group, grouping: Grouping) -> bool:
    return Counter(g.path for g in grouping.groups)[group.path] > 1


def _leaf_of_input(seen: Probe, path: str, leaf: LeafRecord) -> Leaf:
    dtype = str(leaf.dtype).removeprefix("torch.")
    return Leaf(path, leaf.shape, dtype, seen.batch.axes.get(path), moved=path == seen.batch.noisy)


def _leaves(seen: Probe, i: int, side: str) -> tuple[Leaf, ...]:
    a, b, c = (getattr(run.calls[i], side) for run in (seen.base, seen.perturbed, seen.other))
    return learn_leaves(a, b, c, _ROWS, _MORE)


def _hidden_chain(
    calls: list[CallRecord], perturbed: list[CallRecord]
) -> list[tuple[str | None, str | None]]:
    """Follows the hidden state: which input and which output of each call carries it."""
    name: str | None = None
    chain: list[tuple[str | None, str | None]] = []
    for at, (call, other) in enumerate(zip(calls, perturbed, strict=True)):
        inputs = [p for p, leaf in call.inputs.items() if moved(leaf, other.inputs[p])]
        outputs = [
            p
            for p, leaf in call.outputs.items()
            if leaf.dtype.is_floating_point and p in other.outputs and moved(leaf, other.outputs[p])
        ]
        # At the first block only the hidden state has seen the noisy input; its name stays.
        hidden_in = name if name in inputs else next(iter(_largest(call.inputs, inputs)), None)
        name = name or hidden_in
        chain.append((hidden_in, _hidden_out(call, outputs, hidden_in, calls, at, name)))
    return chain


def _largest(leaves: dict[str, LeafRecord], paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda p: -torch.Size(leaves[p].shape).numel())


def _hidden_out(
    call: CallRecord,
    outputs: list[str],
    hidden_in: str | None,
    calls: list[CallRecord],
    at: int,
    name: str | None,
) -> str | None:
    if at + 1 < len(calls):
        following = calls[at + 1].inputs
        order = [p for p in (name, *following) if p in following]
        for p in order:
            for out in outputs:
                if call.outputs[out].token == following[p].token:
                    return out
    if hidden_in is not None:
        for out in outputs:
            if call.outputs[out].shape == call.inputs[hidden_in].shape:
                return out
    return outputs[0] if outputs else None


def _residual(
    calls: list[CallRecord], flat: list[int], at: int, hidden: list[tuple[str | None, str | None]]
) -> bool:
    """Whether the caller adds this call's output to its input: projections add up, being linear."""
    if at + 1 == len(flat):
        same = at > 0 and type(calls[flat[at]].module) is type(calls[flat[at - 1]].module)
        return same and _residual(calls, flat, at - 1, hidden)
    here, following = calls[flat[at]], calls[flat[at + 1]]
    (name_in, name_out), (next_in, _) = hidden[at], hidden[at + 1]
    # The path of a plain tensor output is empty, so absence is None and nothing else.
    if name_in is None or name_out is None or next_in is None:
        return False
    parts = (here.inputs[name_in], here.outputs[name_out], following.inputs[next_in])
    if len({part.shape for part in parts}) > 1 or any(not part.prints for part in parts):
        return False
    if parts[2].token == parts[1].token:
        return False
    x, y, z = (part.prints[0] for part in parts if part.prints)
    return bool(torch.allclose(x + y, z, rtol=1e-4, atol=1e-4 * float(z.abs().max())))


def _describe(
    seen: Probe,
    flat: list[int],
    at: int,
    hidden_in: str | None,
    hidden_out: str | None,
    residual: bool,
) -> Call:
    calls, i = seen.base.calls, flat[at]
    record = calls[i]
    passes: list[tuple[str, str]] = []
    if (
        hidden_in is not None
        and hidden_out is not None
        and not residual
        and record.inputs[hidden_in].shape == record.outputs[hidden_out].shape
    ):
        passes.append((hidden_out, hidden_in))
    for out, leaf in record.outputs.items():
        if out == hidden_out:
            continue
        for name in _carriers(calls, flat, at, out):
            mine = record.inputs.get(name)
            if mine is not None and mine.shape == leaf.shape:
                passes.append((out, name))
                break
    return Call(
        record.path,
        record.nth,
        _leaves(seen, i, "inputs"),
        _leaves(seen, i, "outputs"),
        hidden_in,
        hidden_out,
        tuple(passes),
        residual,
    )


def _carriers(calls: list[CallRecord], flat: list[int], at: int, out: str) -> list[str]:
    """Parameters that the next call of this chain receives this output by."""
    # The last call has no next one: it hands on what its predecessor of the same class did.
    here, following = (at, at + 1) if at + 1 < len(flat) else (at - 1, at)
    leaf = calls[flat[here]].outputs.get(out)
    if leaf is None:
        return []
    return [p for p, later in calls[flat[following]].inputs.items() if later.token == leaf.token]


def _boundaries(
    stages: tuple[Stage, ...], grouping: Grouping, calls: list[CallRecord], macs: float
) -> tuple[Boundary, ...]:
    last = _hidden_leaf(stages[-1])
    glue = macs - sum(s.macs for s in stages)
    spent, out = glue, []
    skips = _skip_sources(grouping, calls)
    for stage, group in zip(stages, grouping.groups, strict=True):
        spent += stage.macs
        leaf = _hidden_leaf(stage)
        mirror = next(
            (j for j in sorted(skips) if j > stage.index + 1 and max(skips[j]) <= stage.index), None
        )
        if leaf is None:
            reason, leaf = "its output does not move with the noisy input", Leaf("", (), "")
        elif leaf.axis is None:
            reason = "its hidden state has no batch axis"
        elif stage.index == len(stages):
            reason = "the end of the network"
        else:
            reason = ""
        hidden = (
            hidden_spec(leaf, calls[group.calls[-1]].module) if leaf.shape else HiddenSpec((1,), 0)
        )
        out.append(
            Boundary(
                stage=stage.index,
                path=stage.path,
                class_name=stage.class_name,
                leaf=leaf,
                hidden=hidden,
                lands=last is not None and leaf.shape == last.shape and leaf.axis == last.axis,
                mirror=mirror,
                share=spent / macs if macs else stage.index / len(stages),
                usable=not reason,
                reason=reason or "repeated unit on the noisy path",
            )
        )
    return tuple(out)


def _hidden_leaf(stage: Stage) -> Leaf | None:
    call = stage.calls[-1]
    return next((leaf for leaf in call.outputs if leaf.path == call.hidden_out), None)


def _skip_sources(grouping: Grouping, calls: list[CallRecord]) -> dict[int, set[int]]:
    """For every stage that receives tensors from stages other than its predecessor: which ones."""
    made = {
        leaf.token: n
        for n, group in enumerate(grouping.groups, 1)
        for i in group.calls
        for leaf in calls[i].outputs.values()
    }
    sources: dict[int, set[int]] = {}
    for n, group in enumerate(grouping.groups, 1):
        for i in group.calls:
            for leaf in calls[i].inputs.values():
                source = made.get(leaf.token, n)
                if source < n - 1:
                    sources.setdefault(n, set()).add(source)
    return sources


def hidden_spec(leaf: Leaf, module: nn.Module) -> HiddenSpec:
    """The hidden state as heads see it: rows first, folded entries merged into the sequence.

    Arguments:
        leaf: The hidden state, batch of two.
        module: The block, whose parameter shapes tell where the channels are.

    Returns:
        Shape and channel axis without the batch.
    """
    axis = leaf.axis or 0
    shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]
    if not shape:
        return HiddenSpec((1,), 0)
    if len(shape) == 3:
        votes = Counter(size for p in module.parameters() for size in p.shape)
        channel = 0 if votes[shape[0]] >= votes[shape[-1]] else 2
    else:
        channel = len(shape) - 1
    if leaf.fold > 1:
        # Frames and the like: one row's entries become one longer sequence of channel vectors.
        rest = [s for a, s in enumerate(shape) if a != channel]
        length = leaf.fold
        for size in rest:
            length *= size
        return HiddenSpec((length, shape[channel]), 1)
    return HiddenSpec(shape, channel)
