"""Finds the timestep among the arguments: proposed by name or by form, confirmed by what it moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit.errors import ConfigError, suggest
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.dry_run import CallRecord, DryRun, keep_common, moved
from exitkit.surgery.example_batch import ExampleBatch
from exitkit.surgery.independence import ROWS
from exitkit.surgery.inputs import Bound
from exitkit.surgery.roles import is_number, noisy_by_form, time_candidates, time_scale

_MOST = 3  # arguments without a telling name that are tried


@dataclass(frozen=True)
class Timestep:
    """The timestep of a backbone.

    Attributes:
        name: Path among the arguments, or None.
        scale: What brings it, less its origin, to 0..1000.
        origin: The timestep at no noise.
        changed: The run that confirmed it, two rows of which the last has another timestep; None if
            it calls other modules.
        doubts: What could not be told, in words.
    """

    name: str | None
    scale: float = 1.0
    origin: float = 0.0
    changed: DryRun | None = None
    doubts: tuple[str, ...] = ()


def find_timestep(
    batch: ExampleBatch, base: DryRun, run: Callable[[Bound], DryRun], adapter: Adapter | None
) -> Timestep:
    """Finds the timestep and confirms that the backbone listens to it.

    Arguments:
        batch: The example.
        base: Its dry run of two rows.
        run: Makes a dry run.
        adapter: Declarations about the backbone, or None.

    Returns:
        The timestep; without a name if none was found.
    """
    two = batch.rows(ROWS)
    declared = adapter.timestep if adapter else None
    parameters = two.signature.parameters if two.signature else two.values
    if declared is not None and declared not in parameters and two.at(declared) is None:
        within = [path for path, _ in two.tensors() if path not in two.values]
        known = [path for path in (*two.values, *within) if path != batch.noisy]
        raise ConfigError(
            f"adapter: timestep={declared!r} is no argument of the example, nor inside one (it has "
            f"{', '.join(known)}).{suggest(declared, known)} Name one of these."
        )
    named, nameless = time_candidates(two, batch.noisy, declared)
    for name in named:
        found = _tried(name, batch, base, run, adapter)
        if found is not None:
            return found
    heard = [
        found
        for name in nameless[:_MOST]
        if (found := _tried(name, batch, base, run, adapter)) is not None
    ]
    if len(heard) == 1:
        return heard[0]
    return Timestep(None, doubts=_not_found(named, [f.name for f in heard], two, batch, base))


def _tried(
    name: str,
    batch: ExampleBatch,
    base: DryRun,
    run: Callable[[Bound], DryRun],
    adapter: Adapter | None,
) -> Timestep | None:
    """The timestep by this name, if anything moves with it."""
    two = batch.rows(ROWS)
    value = two.at(name)
    if value is None or not is_number(value):
        return None
    if _is_table(name, value, batch):
        return None
    (scale, doubt), origin = time_scale(value), 0.0
    other = value * 0.5 + (0.21 if scale > 1 else 7)
    if adapter is not None and adapter.timestep_range is not None:
        origin, end = adapter.timestep_range
        scale, doubt = 1000.0 / (end - origin), ""
        # Half of the way to the middle of the range, and then some: within it, and another one.
        other = value * 0.5 + (origin + end) / 4 + (end - origin) / 50
    changed = run(two.replaced({name: _like(value, other, name in batch.axes)}))
    keep_common([base, changed])
    if not any(map(_heard, base.calls, changed.calls)):
        return None
    same = len(changed.calls) == len(base.calls)
    doubts = (f"timestep {name!r}: {doubt}",) if doubt else ()
    return Timestep(name, scale, origin, changed if same else None, doubts)


def _heard(call: CallRecord, other: CallRecord) -> bool:
    """Whether anything that a call gives moves, or, below the backbone, what it is given.

    A norm takes away again what is added alike everywhere: no output need move.
    """
    sides = [(call.outputs, other.outputs)]
    if call.parent is not None:
        sides.append((call.inputs, other.inputs))
    return any(moved(leaf, new[p]) for old, new in sides for p, leaf in old.items() if p in new)


def _like(value: int | float | Tensor, other: float | Tensor, by_row: bool) -> float | Tensor:
    """Another timestep of the type of the first; by rows the last one alone, which tells how they lie."""
    if not isinstance(value, Tensor):
        return int(other) + (int(other) == value) if isinstance(value, int) else other
    made = torch.as_tensor(other, dtype=value.dtype)
    made = torch.where(made == value, made + 1, made)
    return torch.cat([value[: ROWS - 1], made[ROWS - 1 :]]) if by_row else made


def _not_found(
    named: Sequence[str], heard: Sequence[str | None], two: Bound, batch: ExampleBatch, base: DryRun
) -> tuple[str, ...]:
    """Why no timestep was found, of a backbone that denoises; nothing of any other."""
    given = {batch.noisy: base.calls[0].inputs[batch.noisy]}
    outputs = [leaf for leaf in base.calls[0].outputs.values() if leaf.dtype.is_floating_point]
    if noisy_by_form(given, outputs) is None:
        return ()
    whole = [
        name
        for name, value in two.tensors()
        if not value.is_floating_point() and not value.is_complex()
        if value.dtype != torch.bool and value.ndim == 1 and name in batch.axes
    ]
    if len(heard) > 1:
        why = f"{', '.join(map(repr, heard))} each move the output as one does"
    elif named:
        tables = [n for n in named if _is_table(n, two.at(n), batch)]
        why = f"nothing moves with {', '.join(map(repr, named))}"
        if tables:
            why = f"{', '.join(map(repr, tables))} is neither one number nor one a row"
    elif whole:
        why = f"{', '.join(map(repr, whole))} may be timesteps or labels"
    else:
        return ()
    return (
        f"no timestep was found: {why}. Declare Adapter(timestep=...), without which heads do not know "
        "the time, nor how long ago what is carried was made",
    )


def _is_table(name: str, value: object, batch: ExampleBatch) -> bool:
    """Whether a timestep is a table that rows look into, as of packed sequences."""
    by_row = name in batch.axes or not batch.batched
    return isinstance(value, Tensor) and value.numel() != 1 and not by_row
