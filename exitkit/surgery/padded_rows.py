"""Hidden states as long as the longest row of a batch: where a token lies there depends on the others.

Backbones with padded text drop the padding of each row, put text and image into one sequence, and pad that
again. Exits which land go on as the row would; what reads such a state by places, an output of an exit's own
or an uncertainty, reads other tokens of a row among others than of the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.surgery.another_size import hidden_leaf
from exitkit.surgery.dry_run import DryRun, undisturbed
from exitkit.surgery.probe import Probe
from exitkit.surgery.spec import Stage


def padded_stages(model: nn.Module, seen: Probe, stages: Sequence[Stage]) -> tuple[int, ...]:
    """Stages behind which the length of a row depends on its batch mates, as far as the example shows it.

    Arguments:
        model: The backbone.
        seen: Its dry runs.
        stages: Its stages.

    Returns:
        Their numbers; none where no argument masks the first two rows of the example differently.
    """
    if not _masked(seen):
        return ()
    alone = []
    for row in (0, 1):
        try:
            with undisturbed(model):
                torch.manual_seed(0)
                run = DryRun(model, fingerprints=False).run(seen.batch.chosen([row]))
        except (TracingError, UnsupportedBackboneError):
            return ()  # it does not take one row
        alone.append({(call.path, call.nth): call.outputs for call in run.calls})
    found = []
    for stage in stages:
        call, leaf = stage.calls[-1], hidden_leaf(stage)
        if leaf is None or leaf.axis is None:
            continue
        rows = [outputs.get((call.path, call.nth), {}).get(leaf.path) for outputs in alone]
        shapes = {row.shape for row in rows if row is not None}
        if len(shapes) > 1:
            found.append(stage.index)
    return tuple(found)


def _masked(seen: Probe) -> bool:
    """Whether an argument of zeros and ones is not the same for the first two rows of the example."""
    batch = seen.batch
    if not batch.batched or batch.batch < 2:
        return False
    return any(
        path != batch.noisy
        and path in batch.axes
        and tensor.ndim > 1
        and not torch.equal(*_two(tensor, batch.axes[path]))
        and bool(((tensor == 0) | (tensor == 1)).all())
        for path, tensor in batch.bound.tensors()
    )


def _two(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return tensor.select(axis, 0), tensor.select(axis, 1)


def told(stages: Sequence[Stage], padded: Sequence[int]) -> str:
    """What `inspect` says of them, as a clause; nothing if there are none."""
    names = [stage.path for stage in stages if stage.index in padded]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"behind {shown} a row is as long as the longest of its batch, so an uncertainty there counts "
        "padding and may differ from that of the row alone; decide by a schedule, or put rows of one "
        "length into a batch"
    )
