"""What is checked of where exits land: on what is read, with the head in between, and at any size."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ExitKitError
from exitkit.policies.fixed import FixedExit
from exitkit.policies.never import NeverExit
from exitkit.surgery.inputs import Bound
from exitkit.testing.batches import Batch
from exitkit.testing.contract import equal, require
from exitkit.testing.reference import landed
from exitkit.tree import leaves

_UNCHANGED = 1e-3  # of the output's standard deviation: a step that is repeated exactly


def check_heads(batch: Batch, atol: float) -> None:
    """What leaves moves the output, and comes from the exit's own head.

    Arguments:
        batch: The example.
        atol: Largest absolute difference of two outputs that count as equal.

    Raises:
        ContractError: At the first exit whose output does not depend on its head.
    """
    rows = range(batch.count)
    for depth, head in enumerate(batch.model.heads.output, start=1):
        where = f"{batch.name}: exit {depth} ({batch.model.exits[depth - 1].path})"
        plain = batch.run(rows, FixedExit(depth))
        with _noisy(head):
            moved = batch.run(rows, FixedExit(depth))
        require(
            _gap(plain, moved) > atol,
            f"{where}: the output does not move with what the exit lands. Nobody reads it.",
        )
        own = [*head.parameters(), *(b for b in head.buffers() if b.is_floating_point())]
        if not own:
            continue
        kept = [tensor.clone() for tensor in own]
        for tensor in own:
            tensor.add_(0.1 * torch.randn_like(tensor))
        other = batch.run(rows, FixedExit(depth))
        for tensor, value in zip(own, kept, strict=True):
            tensor.copy_(value)
        require(
            _gap(plain, other) > atol,
            f"{where}: the output does not depend on the parameters of the exit's own head.",
        )


def check_untrained(batch: Batch, atol: float) -> None:
    """An untrained exit through the tail is the backbone with the blocks behind it passed over.

    Arguments:
        batch: The example.
        atol: Largest absolute difference of two outputs that count as equal.

    Raises:
        ContractError: At the first exit that is not.
    """
    model, rows = batch.model, range(batch.count)
    if not model.heads.kind.through_tail:
        return
    for depth, (at, landing) in enumerate(
        zip(model.heads.boundaries, model.heads.landings, strict=True), start=1
    ):
        if landing is None:
            continue
        wanted = landed(model.backbone, model.plan, batch.bound, at.stage, landing)
        mine = batch.run(rows, FixedExit(depth))
        # Of several outputs the others may be made of streams that were passed over.
        gap = _gap(_prediction(batch, wanted), _prediction(batch, mine))
        require(
            gap <= atol,
            f"{batch.name}: exit {depth} ({at.path}) differs by {gap:.1e} from the backbone with the "
            f"hidden state behind {at.path} put behind stage {landing} (allowed {atol:.1e}).",
        )


def check_unchanged(batch: Batch) -> None:
    """Carried exits give the full output when a step is repeated exactly.

    What the blocks in between would hand on is what they handed on before, so a landing that replaces
    all that later stages read of them loses nothing.

    Arguments:
        batch: The example.

    Raises:
        ContractError: At the first exit that does not.
    """
    model = batch.model
    if not model.heads.kind.needs_trajectory:
        return
    args, kwargs = batch.bound.split()
    for depth in range(1, batch.exits + 1):
        with model.trajectory() as trajectory:
            for policy in (NeverExit(), NeverExit(), FixedExit(depth)):
                trajectory.next_step()
                model.policy = policy
                output = model(*args, **kwargs)
                if isinstance(policy, NeverExit):
                    full = output
        mine, whole = (_prediction(batch, out).double() for out in (output, full))
        gap = float((mine - whole).abs().max() / whole.std().clamp(min=1e-12))
        require(
            gap <= _UNCHANGED,
            f"{batch.name}: exit {depth} ({model.exits[depth - 1].path}) differs by {gap:.1e} standard "
            f"deviations from the full output where nothing has changed since (allowed "
            f"{_UNCHANGED:.0e}). Something behind the landing reads what was passed over.",
        )


def check_another_size(batch: Batch) -> None:
    """Inputs of another size give what the backbone gives, or an error that names them.

    The noisy input is repeated along one of its axes, the last that the backbone itself accepts; a
    backbone that runs at one size only, or whose other arguments would have to grow too, is left out.

    Arguments:
        batch: The example.

    Raises:
        ContractError: If an output differs in form from the backbone's, or another error is raised.
    """
    grown = _grown(batch)
    if grown is None:
        return
    bound, bare = grown
    args, kwargs = bound.split()
    model = batch.model
    form = [(path, tuple(t.shape)) for path, t in leaves(bare)]
    with model.trajectory() as trajectory:
        trajectory.next_step()
        model.policy = NeverExit()
        require(
            equal(bare, model(*args, **kwargs)),
            f"{batch.name}: at another size, NeverExit is not bit-identical to the bare backbone.",
        )
        for depth in range(1, batch.exits + 1):
            where = f"{batch.name}: at another size, exit {depth} ({model.exits[depth - 1].path})"
            trajectory.next_step()
            model.policy = FixedExit(depth)
            try:
                found = [(path, tuple(t.shape)) for path, t in leaves(model(*args, **kwargs))]
            except ExitKitError:
                continue  # which says what to do
            except Exception as error:  # any other error is the broken promise
                require(False, f"{where} raises {type(error).__name__}: {error}")
            require(found == form, f"{where} gives {found}, the bare backbone {form}.")


def _grown(batch: Batch) -> tuple[Bound, Any] | None:
    """The arguments with a larger noisy input, and what the backbone gives for them."""
    model, bound = batch.model, batch.bound
    leaf = model.plan.noisy_leaf
    tensor = dict(bound.tensors()).get(model.plan.noisy)
    if tensor is None or leaf.listed or not model.plan.batched:
        return None
    before = [tuple(t.shape) for _, t in leaves(_bare(model.backbone, bound))]
    for axis in range(tensor.ndim - 1, -1, -1):
        if axis == leaf.axis:
            continue
        larger = bound.replaced({model.plan.noisy: torch.cat([tensor, tensor.flip(axis)], axis)})
        try:
            bare = _bare(model.backbone, larger)
        except Exception:  # third-party code says in its own way that it does not take this size
            continue
        if [tuple(t.shape) for _, t in leaves(bare)] != before:
            return larger, bare
    return None


def _bare(backbone: nn.Module, bound: Bound) -> Any:
    args, kwargs = bound.split()
    return backbone(*args, **kwargs)


def _noisy(head: nn.Module) -> ExitStack:
    """Adds noise to what a head gives."""

    def moved(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out + torch.randn_like(out) * (out.std(correction=0) + 1e-3)

    stack = ExitStack()
    stack.callback(head.register_forward_hook(moved).remove)
    return stack


def _gap(first: Any, second: Any) -> float:
    pairs = zip(leaves(first), leaves(second), strict=True)
    gaps = [
        float((a.double() - b.double()).abs().max())
        for (_, a), (_, b) in pairs
        if a.is_floating_point()
    ]
    return max(gaps, default=0.0)


def _prediction(batch: Batch, output: Any) -> Tensor:
    """The prediction in an output; all rows one behind the other where they are entries of a list."""
    path = batch.model.plan.prediction
    found = dict(leaves(output))
    if path in found:
        return found[path]
    return torch.cat([t.flatten() for p, t in found.items() if p.startswith(f"{path}[")])
