"""Whether a backbone remembers: answers a call by what an earlier one left behind.

Caches of steps (FirstBlockCache and the like), counters and appended keys do. Rows that leave early
would meet there what other rows have left, so such a backbone is refused by what it does, not by name.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.modes.snapshot import kept_state
from exitkit.surgery.dry_run import DryRun, moved
from exitkit.surgery.example_batch import ExampleBatch
from exitkit.surgery.independence import ROWS
from exitkit.tree import leaves


def refuse_memory(model: nn.Module, batch: ExampleBatch, base: DryRun, perturbed: DryRun) -> None:
    """Refuses a backbone that answers a call otherwise when it has been called before.

    Three more forwards, only where the dry runs left something behind that could matter: the first
    inputs twice, for caches that answer what is like the last call, then others, for caches that
    answer everything.

    Arguments:
        model: The backbone.
        batch: The example.
        base: A dry run of two rows.
        perturbed: The same with another noisy input.

    Raises:
        UnsupportedBackboneError: If it remembers; the message names where.
    """
    kept = kept_behind(base, perturbed)
    if not kept:
        return
    first, second = (batch.rows(ROWS), base), (batch.perturbed(ROWS), perturbed)
    with kept_state(model):
        again = []
        for inputs, run in (first, first, second):
            torch.manual_seed(0)
            now = DryRun(model, fingerprints=False, restores=False).run(inputs)
            again.append(_equal_calls(run, now) and _equal_outputs(run, now))
    if all(again):
        return
    raise UnsupportedBackboneError(
        f"{type(model).__name__} answers a call otherwise when it has been called before: it "
        f"keeps something from call to call ({', '.join(sorted(kept, key=len)[:3])}). Rows that leave "
        "early would meet what other rows have left there. Switch that cache off (`disable_cache()` in "
        "diffusers), or make the forward independent of earlier ones by an argument, and wrap again."
    )


def refuse_lazy(model: nn.Module) -> None:
    """Refuses a backbone some of whose weights are made by its first call, which cannot be undone.

    Arguments:
        model: The backbone.

    Raises:
        TracingError: If it has such weights.
    """
    lazy = [path for path, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise TracingError(
            f"{type(model).__name__} has lazy layers whose weights have no shape yet "
            f"({', '.join(lazy[:3])}). Call it once with the example inputs, then wrap it."
        )


def kept_behind(base: DryRun, perturbed: DryRun) -> list[str]:
    """Paths of what a forward leaves on the model, constant tables left out.

    Arguments:
        base: A dry run.
        perturbed: The same with another noisy input.

    Returns:
        The paths: of tensors that move with the noisy input, and of what is no tensor.
    """
    return [
        path
        for path, leaf in base.left.items()
        if leaf is None or (other := perturbed.left.get(path)) is None or moved(leaf, other)
    ]


def _equal_calls(first: DryRun, second: DryRun) -> bool:
    return [(c.path, c.nth) for c in first.calls] == [(c.path, c.nth) for c in second.calls]


def _equal_outputs(first: DryRun, second: DryRun) -> bool:
    mine, theirs = leaves(first.output), leaves(second.output)
    if [(path, t.shape) for path, t in mine] != [(path, t.shape) for path, t in theirs]:
        return False
    return all(
        float((a - b).norm()) <= 1e-4 * float(a.norm())
        for (_, a), (_, b) in zip(mine, theirs, strict=True)
        if a.is_floating_point()
    )
