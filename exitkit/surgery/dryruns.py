"""The few dry runs that a plan rests on: two inputs, two batch sizes, two timesteps.

Four forwards at most in the common case: the example, the same with row 0 of the noisy input changed,
one row more, and (where there is a timestep) another timestep. A fifth and more only where the batch
is not in front.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import TracingError, UnsupportedBackboneError
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
from exitkit.surgery.probing import DryRun, moved, undisturbed
from exitkit.surgery.spec import Leaf

ROWS, MORE = 2, 3  # rows of the dry runs


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
        counted: How multiply-accumulates were counted, in words.
    """

    batch: ExampleBatch
    base: DryRun
    perturbed: DryRun
    other: DryRun
    timestep: str | None
    timestep_scale: float
    counted: str = ""

    def leaves(self, call: int, side: str) -> tuple[Leaf, ...]:
        """Describes the tensors of one call.

        Arguments:
            call: Index of the call in the dry runs.
            side: `inputs` or `outputs`.

        Returns:
            The leaves in order.
        """
        a, b, c = (getattr(r.calls[call], side) for r in (self.base, self.perturbed, self.other))
        return learn_leaves(a, b, c, ROWS, MORE)


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
            if found is not None:
                return _with_timestep(model, found, adapter)
            ran = True
    if cause is not None and not ran:
        raise cause
    raise UnsupportedBackboneError(
        f"{type(model).__name__}: no axis of {noisy!r} {tuple(dict(bound.tensors())[noisy].shape)} "
        f"counts independent rows ({'; '.join(problems)}). Exits are decided per row, so rows must "
        "not see each other. If the batch is elsewhere, declare Adapter(batch_axis=...)."
    )


def _run(model: nn.Module, inputs: Bound, **options: Any) -> DryRun:
    torch.manual_seed(0)  # inside `undisturbed`: forwards that draw numbers draw the same ones
    return DryRun(model, **options).run(inputs)


def _probe_guesses(model: nn.Module, batch: ExampleBatch, problems: list[str]) -> Probe | None:
    """Probes; where that fails, takes one argument after the other for shared by all rows.

    An argument without rows (position ids, say) may be as long as the example's batch by chance.
    """
    try:
        return _probe_axis(model, batch, problems)
    except TracingError:
        for path in batch.axes:
            if path == batch.noisy:
                continue
            axes = {p: a for p, a in batch.axes.items() if p != path}
            with suppress(TracingError):
                return _probe_axis(model, replace(batch, axes=axes), problems)
        raise


def _probe_axis(model: nn.Module, batch: ExampleBatch, problems: list[str]) -> Probe | None:
    two = batch.rows(ROWS)
    other, counted = _counted(model, batch.rows(MORE))
    base = _run(model, two)
    perturbed = _run(model, two.replaced({batch.noisy: _changed(two, batch)}))
    for run in (perturbed, other):
        if [(c.path, c.nth) for c in run.calls] != [(c.path, c.nth) for c in base.calls]:
            raise TracingError(
                f"{type(model).__name__} calls other modules when the input changes, so its blocks "
                "have no fixed order. Fix the branch (an argument or a mode) and wrap again."
            )
    outputs = learn_leaves(
        base.calls[0].outputs, perturbed.calls[0].outputs, other.calls[0].outputs, ROWS, MORE
    )
    if not any(leaf.axis is not None for leaf in outputs):
        problems.append(f"axis {batch.axis}: the output has no axis that grows with it")
        return None
    if _coupled(base, perturbed, other, batch.noisy):
        problems.append(f"axis {batch.axis}: changing one entry changes the others' output")
        return None
    return Probe(batch, base, perturbed, other, None, 1.0, counted)


def _counted(model: nn.Module, inputs: Bound) -> tuple[DryRun, str]:
    """Runs once with multiply-accumulates counted, by layers where operators cannot be."""
    try:
        run = _run(model, inputs, fingerprints=False, count_macs="operators")
    except TracingError as error:
        # Compiled operators such as FlexAttention do not run under a dispatch mode.
        if "higher_order" not in str(error.__cause__):
            raise
        run = _run(model, inputs, fingerprints=False, count_macs="layers")
        return run, "MACs of linear and convolution layers alone: an operator cannot be counted"
    return run, "MACs of all operators"


def _changed(two: Bound, batch: ExampleBatch) -> Tensor:
    noisy = dict(two.tensors())[batch.noisy].clone()
    row = noisy.select(batch.axis, 0)
    row.add_(torch.randn(row.shape, dtype=torch.float32).to(row) * (row.std(correction=0) + 0.5))
    return noisy


def _coupled(base: DryRun, perturbed: DryRun, other: DryRun, noisy: str) -> bool:
    """Whether a change of row 0 reaches another row of any leaf on the way."""
    for a, b, c in zip(base.calls, perturbed.calls, other.calls, strict=True):
        for leaf in learn_leaves(a.outputs, b.outputs, c.outputs, ROWS, MORE):
            if leaf.axis is None or not leaf.moved:
                continue
            first, second = a.outputs[leaf.path].prints, b.outputs[leaf.path].prints
            if first is None or second is None or leaf.tiled:
                continue
            rest = slice(leaf.fold, leaf.fold * ROWS)
            x, y = first[leaf.axis][rest], second[leaf.axis][rest]
            # Rounding may differ with what is beside a row; a real dependence is far larger.
            if bool(((x - y).abs() > 1e-4 * (x.abs() + y.abs() + 1e-6)).any()):
                return True
    return False


def _with_timestep(model: nn.Module, found: Probe, adapter: Adapter | None) -> Probe:
    """Finds the timestep by name and confirms that the backbone listens to it."""
    two = found.batch.rows(ROWS)
    names = (adapter.timestep,) if adapter and adapter.timestep else TIMESTEP_NAMES
    for name in names:
        value = two.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            continue
        if isinstance(value, Tensor) and value.numel() not in (1, ROWS):
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
            return replace(found, timestep=name, timestep_scale=scale)
    return found
