"""Where sizes do not tell the channels from a side of an image, a run at another size does.

A row of 16x16x16 has its channels in front or at the end. The channels are what stays as it is when the
input grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.surgery.dry_run import DryRun, undisturbed
from exitkit.surgery.independence import ROWS
from exitkit.surgery.probe import Probe
from exitkit.surgery.spec import Leaf, Stage


def rows_at_another_size(
    model: nn.Module, seen: Probe, stages: Sequence[Stage]
) -> dict[int, tuple[int, ...]]:
    """Shape of a row of the hidden state behind stages, with a larger input, where that is in doubt.

    Arguments:
        model: The backbone.
        seen: Its dry runs.
        stages: Its stages.

    Returns:
        The shapes by index of the stage; none where no size is in doubt or no other one runs.
    """
    ends = {stage.index: (stage.calls[-1], hidden_leaf(stage)) for stage in stages}
    doubtful = {n: (call, leaf) for n, (call, leaf) in ends.items() if leaf and _in_doubt(leaf)}
    if not doubtful or not seen.batch.batched:
        return {}
    bound = seen.batch.rows(ROWS)
    noisy = dict(bound.tensors())[seen.batch.noisy]
    middle = [a for a in range(1, noisy.ndim) if a != seen.batch.axis]
    # All sides at once, with channels in front or at the end; then whatever axis grows alone.
    for axes in (middle[1:], middle[:-1], *([axis] for axis in reversed(middle))):
        larger = bound.replaced({seen.batch.noisy: _grown(noisy, axes)})
        try:
            with undisturbed(model):
                torch.manual_seed(0)
                run = DryRun(model, fingerprints=False).run(larger)
        except (TracingError, UnsupportedBackboneError):
            continue  # it does not take this size
        outputs = {(call.path, call.nth): call.outputs for call in run.calls}
        found = {}
        for n, (call, leaf) in doubtful.items():
            now = outputs.get((call.path, call.nth), {}).get(leaf.path)
            if now is not None and len(now.shape) == len(leaf.shape) and leaf.axis is not None:
                found[n] = now.shape[: leaf.axis] + now.shape[leaf.axis + 1 :]
        return found
    return {}


def _grown(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Twice as long along these axes, mirrored."""
    for axis in axes:
        tensor = torch.cat([tensor, tensor.flip(axis)], axis)
    return tensor


def hidden_leaf(stage: Stage) -> Leaf | None:
    """The hidden state among the outputs of the last call of a stage."""
    call = stage.calls[-1]
    return next((leaf for leaf in call.outputs if leaf.path == call.hidden_out), None)


def _in_doubt(leaf: Leaf) -> bool:
    """Whether the first and the last axis of a row are of one size."""
    if leaf.axis is None or leaf.whole or leaf.fold > 1:
        return False
    row = leaf.row
    return len(row) > 1 and row[0] == row[-1]
