"""Whether a block gives a row alone what it gives it among others, tried where that is in doubt.

In doubt it is where the forward leaves rows in attributes, where an argument packs rows of several
lengths one behind the other, or where a plain object holds them. A block that reads its rows from there
cannot run for some of them. Nor can one that puts something into a container, or takes it out, where the
caller or another block counts on that: for some rows it is given a container of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ExitKitError, UnsupportedBackboneError
from exitkit.modes.flags import preserved_rng
from exitkit.modes.snapshot import preserved_state
from exitkit.surgery.batch_axes import learn_leaf
from exitkit.surgery.dry_run import undisturbed
from exitkit.surgery.independence import MORE, ROWS
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.probe import Probe
from exitkit.surgery.spec import Call, Leaf
from exitkit.tree import copied, leaves


def check_rows_alone(model: nn.Module, seen: Probe, calls: Mapping[int, Call]) -> None:
    """Runs each of two rows through each block beside both, in one forward more, if that is in doubt.

    Arguments:
        model: The backbone.
        seen: Its dry runs.
        calls: The calls of its stages, by index in the dry runs.

    Raises:
        UnsupportedBackboneError: If a block gives a row something else alone, or fails.
    """
    doubts = _doubts(seen, calls)
    if not doubts or not seen.batch.batched:
        return
    problems: list[str] = []
    written = [
        f"{path} of {call.path}"
        for i, call in calls.items()
        for path in seen.base.calls[i].replaced
    ]
    args, kwargs = seen.batch.rows(ROWS).split()
    with undisturbed(model), ExitStack() as stack, torch.no_grad():
        by_path: dict[str, list[Call]] = {}
        for call in calls.values():
            by_path.setdefault(call.path, []).append(call)
        for path, visits in by_path.items():
            module = model.get_submodule(path)
            before, behind = _hooks(
                module, iter(sorted(visits, key=lambda c: c.nth)), problems, bool(written)
            )
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(behind).remove)
        torch.manual_seed(0)
        try:
            output = model(*copied(args), **copied(kwargs))
        except Exception as error:  # third-party code misses what is lost
            if isinstance(error, ExitKitError) or not (written or problems):
                raise
            output = None
    # First: what is lost there also makes later blocks differ.
    if written and not _same(output, seen.base.output):
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: blocks write into a container that they are given "
            f"({', '.join(written[:3])}), or take out of it, and their caller or another block counts on "
            "that. Rows that run alone are given a container of their own, so what is put in there or "
            "taken out (append, pop, d[key] = ...) would be lost. Let the caller do it between the blocks, "
            "return what a block makes and go on with that, or let an adapter name other blocks, which "
            "change nothing that they are given: ek.Adapter(name, matches, blocks=...)."
        )
    if problems:
        raise UnsupportedBackboneError(
            f"{type(model).__name__}: {problems[0]}. It reads rows from elsewhere than from arguments "
            f"with one entry a row (in doubt: {', '.join(doubts[:3])}), so it cannot run for some rows "
            "of a batch. Pass them to the block as arguments, rows first and of one length (calls may differ "
            "in that where a list of lengths tells), or declare "
            "Adapter(batched=False), with which all rows of a call leave together."
        )


def _doubts(seen: Probe, calls: Mapping[int, Call]) -> list[str]:
    """What makes it worth trying: rows in attributes and objects, or unlike, and written containers."""
    found = []
    for path, leaf in seen.base.left.items():
        other = seen.other.left.get(path)
        if leaf is not None and learn_leaf(path, leaf, None, other, ROWS, MORE).axis is not None:
            found.append(path)
    for i, call in calls.items():
        many, record = seen.other.calls[i].inputs, seen.base.calls[i]
        found += [f"{path} of {call.path}, in a plain object" for path in record.objects]
        found += [f"{path} of {call.path}, written into" for path in record.replaced]
        found += [
            f"{leaf.path} of {call.path}"
            for leaf in call.inputs
            if leaf.tail or (leaf.axis is None and many[leaf.path].shape != leaf.shape)
        ]
    return found


Hook = Callable[..., Any]


def _hooks(module: nn.Module, visits: Any, problems: list[str], written: bool) -> tuple[Hook, Hook]:
    """Hooks in front of and behind a block: each row alone, and whether both agree.

    Where blocks write into containers, each is given its own, as far down as they are nested.
    """
    signature, alone = signature_of(module.forward), list[tuple[Call, list[dict[str, Tensor]]]]()

    def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        call = next(visits)
        # Of row 0 the first entries are right also where a block counts them from the beginning.
        made = [one(call, row, args, kwargs) for row in range(ROWS)]
        alone.append((call, made))
        # As the block is called for some rows: containers that hold rows are made anew.
        bound = bind(signature, args, kwargs)
        tensors = dict(bound.tensors())
        known = [
            leaf.path for leaf in call.inputs if leaf.axis is not None and leaf.path in tensors
        ]
        fresh = bound.replaced({path: tensors[path].view_as(tensors[path]) for path in known})
        return (_own(fresh) if written else fresh).split()

    def one(call: Call, row: int, args: Any, kwargs: Any) -> dict[str, Tensor]:
        bound = bind(signature, copied(args), copied(kwargs))
        bound = _own(bound) if written else bound
        tensors = dict(bound.tensors())
        rows = {
            leaf.path: row_of(tensors[leaf.path], leaf, row)
            for leaf in call.inputs
            if leaf.axis is not None and leaf.path in tensors
        }
        some_args, some_kwargs = bound.replaced(rows).with_entries(call.lists, [row]).split()
        made: dict[str, Tensor] = {}
        why = ""
        with preserved_state(module), preserved_rng():
            try:
                made = dict(leaves(module.forward(*some_args, **some_kwargs)))
            except Exception as error:  # third-party code meets one row where it has two
                if isinstance(error, ExitKitError):
                    raise
                why = f"{type(error).__name__}: {error}"
        # Out here: what hooks of the block hold is put back above.
        if why:
            problems.append(f"block {call.path!r} fails on one row of two ({why:.120})")
        return made

    def behind(_: nn.Module, __: Any, output: Any) -> None:
        call, made = alone.pop()
        both = dict(leaves(output))
        for row, leaf in product(range(ROWS), call.outputs):
            known = leaf.axis is not None and leaf.dtype.startswith(("float", "bfloat"))
            if not made[row] or not known:
                continue
            expected, found = row_of(both[leaf.path], leaf, row), made[row].get(leaf.path)
            if found is None or not _alike(expected, found):
                problems.append(
                    f"block {call.path!r} gives a row alone another {leaf.path or 'output'}"
                )

    return before, behind


def _own(bound: Bound) -> Bound:
    """The arguments in containers and plain objects of their own, around the same tensors."""
    values = {name: copied(value, tensors=False) for name, value in bound.values.items()}
    for name, value in values.items():
        if value is bound.values[name] and hasattr(value, "__dict__") and not callable(value):
            values[name] = copy.copy(value)
    return Bound(values, bound.signature)


def row_of(tensor: Tensor, leaf: Leaf, row: int) -> Tensor:
    """The entries of one row of two, and the constant tail.

    Arguments:
        tensor: Both rows.
        leaf: Where they are; `axis` must not be None.
        row: Its number, 0 or 1.

    Returns:
        One row, a copy.
    """
    assert leaf.axis is not None
    steps = torch.arange(leaf.fold)
    steps = steps * ROWS + row if leaf.tiled else steps + leaf.fold * row
    index = torch.cat([steps, torch.arange(leaf.fold * ROWS, leaf.fold * ROWS + leaf.tail)])
    return tensor.index_select(leaf.axis, index.to(tensor.device))


def _same(output: Any, expected: Any) -> bool:
    """Whether a forward gave what it gave before."""
    found = dict(leaves(output))
    wanted = [(p, t) for p, t in leaves(expected) if t.is_floating_point()]
    return all(path in found and _alike(tensor, found[path]) for path, tensor in wanted)


def _alike(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    allowed = 1e-3 if first.dtype in (torch.float32, torch.float64) else 0.1
    return bool((first - second).float().norm() <= allowed * first.float().norm())
