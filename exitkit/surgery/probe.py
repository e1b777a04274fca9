"""The few dry runs that a plan rests on: two inputs, two batch sizes, two timesteps.

Four forwards in the common case: the example, the same with row 0 of the noisy input changed, one row
more, and (where there is a timestep) another timestep. More where the batch is not in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.batch_axes import learn_leaves, whole_leaf
from exitkit.surgery.counted_run import counted_run, seeded_run
from exitkit.surgery.dry_run import CallRecord, DryRun, keep_common, moved, undisturbed
from exitkit.surgery.example_batch import CHANGES, ExampleBatch, example_batch, rows_in_front
from exitkit.surgery.independence import MORE, ROWS, coupled, grouped, row_list, same_row
from exitkit.surgery.inputs import Bound, Inputs, bind, signature_of
from exitkit.surgery.memory import refuse_lazy, refuse_memory
from exitkit.surgery.roles import noisy_by_form, noisy_candidates
from exitkit.surgery.spec import Leaf
from exitkit.surgery.timestep import find_timestep
from exitkit.tree import leaves


@dataclass
class Probe:
    """The dry runs of a backbone on which a plan rests.

    Attributes:
        batch: The example as a batch.
        base: Two rows.
        perturbed: The same, row 0 of the noisy input changed.
        other: Three rows, with multiply-accumulates counted; without rows, the example again.
        timestep: Path of the timestep among the arguments, or None.
        timestep_scale: What brings it, less its origin, to 0..1000.
        counted: How multiply-accumulates were counted, in words.
        further: Two rows with the last row of other arguments changed: of the timestep, and of the
            rest where that is needed to tell how rows lie.
        timestep_origin: The timestep at no noise.
        doubts: What could not be told of the timestep, in words.
    """

    batch: ExampleBatch
    base: DryRun
    perturbed: DryRun
    other: DryRun
    timestep: str | None
    timestep_scale: float
    counted: str = ""
    further: tuple[DryRun, ...] = ()
    timestep_origin: float = 0.0
    doubts: tuple[str, ...] = ()

    def macs(self, call: int) -> float:
        """Multiply-accumulates of one call in a forward of one row."""
        return self.other.calls[call].macs / (MORE if self.batch.batched else 1)

    def leaves(self, call: int, side: str) -> tuple[Leaf, ...]:
        """Describes the tensors of one call.

        Arguments:
            call: Index of the call in the dry runs.
            side: `inputs` or `outputs`.

        Returns:
            The leaves in order.
        """
        a, b, c = (getattr(r.calls[call], side) for r in (self.base, self.perturbed, self.other))
        if not self.batch.batched:
            return tuple(whole_leaf(path, leaf, b.get(path)) for path, leaf in a.items())
        further = [getattr(run.calls[call], side) for run in self.further]
        return learn_leaves(a, b, c, ROWS, MORE, further)


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
    candidates = noisy_candidates(bound, model, adapter.noisy if adapter else None)
    try:
        found = _probe_noisy(model, bound, candidates[0], adapter)
        chosen = _by_form(candidates, found.base)
    except (TracingError, UnsupportedBackboneError):
        # Perhaps it is the wrong input that was cut into rows: the output tells.
        if len(candidates) < 2:
            raise
        with undisturbed(model):
            chosen = _by_form(candidates, seeded_run(model, bound, fingerprints=False))
        if chosen in (None, candidates[0]):
            raise
        found = None
    if found is None or chosen not in (None, candidates[0]):
        found = _probe_noisy(model, bound, chosen or candidates[0], adapter)
    return found


def _by_form(candidates: Sequence[str], run: DryRun) -> str | None:
    """The candidate for the noisy input that has the form of the output."""
    given = run.calls[0].inputs
    made = [leaf for leaf in run.calls[0].outputs.values() if leaf.dtype.is_floating_point]
    return noisy_by_form({p: given[p] for p in candidates if p in given}, made)


def _probe_noisy(model: nn.Module, bound: Bound, noisy: str, adapter: Adapter | None) -> Probe:
    """Probes with one argument taken as the noisy input."""
    if adapter and not adapter.batched:
        batch = ExampleBatch(bound, noisy, 0, 1, batched=False)
        with undisturbed(model):
            whole = _probe_runs(model, batch)
            refuse_memory(model, batch, whole.base, whole.perturbed)
            return _with_timestep(model, whole, adapter)
    declared = adapter.batch_axis if adapter else None
    ndim = dict(bound.tensors())[noisy].ndim
    axes: list[int | None] = [*[0, 1][: max(1, ndim - 1)]]
    if noisy.split("[")[0] in bound.lists():
        axes.insert(0, None)  # a list with one tensor a row
    if declared is not None:
        axes = [declared]
    problems: list[str] = []
    ran = False
    cause: TracingError | None = None
    with undisturbed(model):
        for axis in axes:
            try:
                batch = example_batch(bound, noisy, axis, model)
                found = _probe_guesses(model, batch, problems)
            except TracingError as error:
                cause = cause or error
                problems.append(f"axis {axis}: {error}")
                continue
            told = rows_in_front(found.batch) if found is not None and declared is None else None
            if told is not None:
                problems.append(f"axis {axis}: {told}")
            elif found is not None:
                refuse_memory(model, batch, found.base, found.perturbed)
                return _with_layouts(model, _with_timestep(model, found, adapter))
            ran = True
        if cause is not None and not ran:
            if cause.__cause__ is None:
                raise cause
            # As given, then: whether it is the example that is wrong, or its cutting into rows.
            seeded_run(model, bound, fingerprints=False)
    shape = tuple(dict(bound.tensors())[noisy].shape)
    if cause is not None and not ran:
        raise UnsupportedBackboneError(
            f"{type(model).__name__} runs on the example as given, but has no batch axis: with "
            f"another number of rows of {noisy!r} {shape} it fails ({cause.__cause__!r:.200}). "
            "Packed sequences and states shared by all rows leave no row to exit by itself. If the "
            "batch is elsewhere, declare Adapter(noisy=..., batch_axis=...); if there is none, "
            "Adapter(batched=False) lets whole calls exit."
        ) from cause
    raise UnsupportedBackboneError(
        f"{type(model).__name__}: no axis of {noisy!r} {shape} counts independent rows "
        f"({'; '.join(problems)}). Exits are decided per row, so rows must not see each other. If "
        "the batch is elsewhere, declare Adapter(batch_axis=...)."
    )


def _probe_guesses(model: nn.Module, batch: ExampleBatch, problems: list[str]) -> Probe | None:
    """Probes, reading one argument otherwise after the other until rows are independent."""
    cause: TracingError | None = None
    tried: list[str] = []
    for guess in batch.guesses():
        try:
            found = _probe_axis(model, guess, tried)
        except TracingError as error:
            cause = cause or error
            continue
        if found is not None:
            return found
    if cause is not None and not tried:
        raise cause
    problems.extend(dict.fromkeys(tried))
    return None


def _probe_runs(model: nn.Module, batch: ExampleBatch) -> Probe:
    """Runs two rows, the same with another noisy input, and three rows: all equal in structure."""
    two = batch.rows(ROWS)
    refuse_lazy(model)
    other, counted = counted_run(model, batch.rows(MORE))
    base = seeded_run(model, two)
    bad = [path for path, t in leaves(base.output) if not bool(t.isfinite().all())]
    if bad:
        raise TracingError(
            f"{type(model).__name__} gives NaN or infinity on the example inputs (output "
            f"{', '.join(p or 'tensor' for p in bad)}), so nothing can be compared. Check its weights "
            "and buffers, and that example_inputs are what it is called with."
        )
    perturbed = _perturbed(model, batch, base)
    keep_common([base, perturbed, other])
    for run in (perturbed, other):
        if [(c.path, c.nth) for c in run.calls] != [(c.path, c.nth) for c in base.calls]:
            raise TracingError(
                f"{type(model).__name__} calls other modules when the input changes, so its blocks "
                "have no fixed order. Fix the branch (an argument or a mode) and wrap again."
            )
    return Probe(batch, base, perturbed, other, None, 1.0, counted)


def _perturbed(model: nn.Module, batch: ExampleBatch, base: DryRun) -> DryRun:
    """Runs two rows with another noisy input, in the first way that the backbone bears and notices."""
    cause: TracingError | None = None
    unnoticed: DryRun | None = None
    for change in CHANGES if batch.batch > 1 else CHANGES[:2]:
        try:
            run = seeded_run(model, batch.perturbed(ROWS, change))
        except TracingError as error:
            cause = cause or error
            continue
        if any(map(_moves, base.calls[1:], run.calls[1:])):
            return run
        unnoticed = unnoticed or run  # a factor does not pass the norm in front
    if unnoticed is None:
        assert cause is not None
        raise cause
    return unnoticed


def _moves(call: CallRecord, other: CallRecord) -> bool:
    """Whether something that a call gives differs."""
    new = other.outputs
    return any(moved(leaf, new[path]) for path, leaf in call.outputs.items() if path in new)


def _probe_axis(model: nn.Module, batch: ExampleBatch, problems: list[str]) -> Probe | None:
    found = _probe_runs(model, batch)
    base, perturbed, other = found.base, found.perturbed, found.other
    outputs = learn_leaves(
        base.calls[0].outputs, perturbed.calls[0].outputs, other.calls[0].outputs, ROWS, MORE
    )
    if not any(leaf.axis is not None for leaf in outputs) and row_list(base, other) is None:
        problems.append(f"axis {batch.axis}: the output has no axis that grows with it")
    elif coupled(base, perturbed, other):
        problems.append(f"axis {batch.axis}: changing one entry changes the others' output")
    elif not same_row(base, other, outputs):
        problems.append(f"axis {batch.axis}: row 0 changes with the number of rows")
    elif grouped(model, batch, base, outputs):
        problems.append(f"axis {batch.axis}: rows of a batch of four see each other")
    else:
        return found
    return None


def _with_timestep(model: nn.Module, found: Probe, adapter: Adapter | None) -> Probe:
    time = find_timestep(found.batch, found.base, lambda inputs: seeded_run(model, inputs), adapter)
    return replace(
        found,
        timestep=time.name,
        timestep_scale=time.scale,
        timestep_origin=time.origin,
        further=() if time.changed is None else (time.changed,),
        doubts=time.doubts,
    )


def _with_layouts(model: nn.Module, found: Probe) -> Probe:
    """Changes the last row of other arguments where some folded leaf has not told its layout yet."""
    if not any(
        leaf.fold > 1 and not leaf.moved and not leaf.tiled
        for call in range(len(found.base.calls))
        for leaf in found.leaves(call, "inputs")
    ):
        return found
    two = found.batch.rows(ROWS)
    noise = torch.Generator().manual_seed(1)
    changed = {}
    for path, axis in found.batch.axes.items():
        tensor = dict(two.tensors())[path]
        if path in (found.batch.noisy, found.timestep) or not tensor.is_floating_point():
            continue
        changed[path] = tensor.clone()
        fold = found.batch.folds.get(path, 1)
        row = changed[path].narrow(axis, (ROWS - 1) * fold, fold)
        row.add_(torch.randn(row.shape, generator=noise).to(row))
    if not changed:
        return found
    run = seeded_run(model, two.replaced(changed))
    same = [(c.path, c.nth) for c in run.calls] == [(c.path, c.nth) for c in found.base.calls]
    return replace(found, further=(*found.further, run)) if same else found
