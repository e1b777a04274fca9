"""Whether arguments that the example did not have hold rows: tried out, once, where it matters.

A table of positions that is as long as the batch looks like one entry a row. Both readings are run
beside the block on all rows; the one that gives the live rows what they get there is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

import torch

from exitkit.errors import ExitKitError, PlanMismatchError
from exitkit.execution.arguments import Arguments, Role
from exitkit.execution.row_index import RowIndex
from exitkit.modes.flags import evaluating, preserved_rng
from exitkit.modes.snapshot import preserved_state
from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves

# Without rows, since there is one for all; by lengths alone, since rows cannot be alike.
_CHOICES = {"shared": (False,), "only": (True,)}

_MOST = 16  # readings: of up to four arguments together, all


def learned_roles(call: Arguments, unknown: Sequence[Role], live: RowIndex) -> dict[Role, bool]:
    """Tells which arguments of a call hold rows.

    Arguments:
        call: The arguments.
        unknown: Those in question.
        live: Some of the rows.

    Returns:
        Whether each holds rows. What no reading tells apart in this call (rows that are equal) is
        left out.

    Raises:
        PlanMismatchError: If no reading gives the rows what they get among all rows.
    """
    choices = product(*(_CHOICES.get(how.split(" ")[0], (True, False)) for *_, how in unknown))
    readings = [dict(zip(unknown, choice, strict=True)) for choice in islice(choices, _MOST)]
    right = [reading for reading in readings if _holds(call, live, reading)]
    if not right:
        shown = [
            f"{path} {tuple(t.shape) if (t := call.tensors.get(path)) is not None else '(a list)'}"
            for _, path, _ in unknown
        ]
        raise PlanMismatchError(
            f"Block {call.site.call.path!r}: its arguments {', '.join(shown)} are unlike the example, "
            f"and {live.count} of {call.batch} rows get something else alone than among all, whether "
            "these hold one entry a row or one for all. Wrap with example_inputs like this call."
        )
    return {
        role: rows for role, rows in right[0].items() if all(other[role] == rows for other in right)
    }


def check_attributes(call: Arguments) -> None:
    """Makes sure that rows which a block holds in attributes are none that it reads.

    Arguments:
        call: The arguments of a call.

    Raises:
        PlanMismatchError: If the block gives the last row something else alone than among all.
    """
    found = [
        f"{path}.{name}" if path else name
        for path, module in call.gate.block.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == call.batch
    ]
    # The last one: the first would be right where a block takes the first of what it holds.
    last = torch.tensor([call.batch - 1], device=call.entering.device) if found else None
    if last is not None and not _holds(call, RowIndex(last, call.batch), {}):
        raise PlanMismatchError(
            f"Block {call.site.call.path!r} holds rows in attributes ({', '.join(found[:3])}), which the "
            f"example did not show, and the last of {call.batch} rows gets something else alone than among "
            "all. Pass them as arguments, rows first; or wrap with example_inputs like this call."
        )


def _holds(call: Arguments, live: RowIndex, reading: dict[Role, bool]) -> bool:
    """Whether the live rows alone, read this way, get what they get among all rows."""
    gate = call.gate
    before = dict(gate.roles)
    with preserved_state(gate.block), evaluating(gate.block), preserved_rng(), torch.no_grad():
        whole = call.copied()
        full = gate.original(*whole.args, **whole.kwargs)
        gate.roles.update(reading)
        try:
            some = call.copied().of(RowIndex(live.rows, live.batch))
            part = gate.original(*some.args, **some.kwargs)
        except Exception as error:  # third-party code meets tensors of the wrong size: not read so
            if isinstance(error, ExitKitError):
                raise
            return False
        finally:
            gate.roles = before
    return all(_equal(a, b) for a, b in _pairs(full, part, call, live))


def _pairs(full: Any, part: Any, call: Arguments, live: RowIndex) -> Iterator[tuple[Any, Any]]:
    mine = dict(leaves(part))
    for path, tensor in leaves(full):
        leaf: Leaf | None = call.site.outputs.get(path)
        if leaf is not None and leaf.axis is not None and path in mine:
            yield live.select(tensor, leaf), mine[path]


def _equal(expected: torch.Tensor, found: torch.Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    exact = expected.dtype in (torch.float32, torch.float64)
    gap = (expected - found).double().norm()
    return bool(gap <= (1e-4 if exact else 2e-2) * expected.double().norm())
