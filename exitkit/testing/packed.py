"""What is checked of a backbone without a batch axis: whole calls that leave at some depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exitkit.policies.fixed import FixedExit
from exitkit.policies.never import NeverExit
from exitkit.surgery.inputs import bind, signature_of
from exitkit.surgery.spec import Call
from exitkit.testing.batches import Batch
from exitkit.testing.contract import require
from exitkit.tree import leaves, substitute


def check_whole(batch: Batch, atol: float) -> None:
    """Every depth gives another output; untrained exits give what the backbone's own tail would.

    Arguments:
        batch: The packed sequence.
        atol: Largest absolute difference of two outputs that count as equal.

    Raises:
        ContractError: At the first broken promise.
    """
    outputs = [batch.row(batch.run([0], FixedExit(d + 1)), 0) for d in range(batch.exits)]
    outputs.append(batch.row(batch.run([0], NeverExit()), 0))
    for depth in range(1, batch.exits + 1):
        require(
            batch.difference(outputs[depth - 1], outputs[depth]) > atol,
            f"{batch.name}: the output is the same at depths {depth} and {depth + 1}, so a wrong depth "
            "would not be noticed. Zero-initialised gates? Perturb the parameters of an untrained "
            "backbone first.",
        )
    if not batch.model.heads.kind.through_tail:
        return  # such heads change what leaves before they are trained
    stages = {stage.path: stage.index for stage in batch.model.plan.stages}
    for depth, exit in enumerate(batch.model.exits, start=1):
        if not batch.model.plan.boundaries[stages[exit.path] - 1].lands:
            continue
        gap = batch.difference(outputs[depth - 1], _reference(batch, stages[exit.path]))
        require(
            gap <= atol,
            f"{batch.name}: exit {depth} ({exit.path}) differs by {gap:.1e} from the backbone run to "
            f"the end with the hidden state of {exit.path} put behind its last block (allowed "
            f"{atol:.1e}).",
        )


def _reference(batch: Batch, stage: int) -> list[Tensor]:
    """Runs the backbone itself to the end, and gives its tail the hidden state behind a stage."""
    plan, backbone = batch.model.plan, batch.model.backbone
    source, last = plan.stages[stage - 1].calls[-1], plan.stages[-1].calls[-1]
    seen: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def swap(module: nn.Module, args: Any, kwargs: Any, out: Any, path: str) -> Any:
        nth = counts.get(path, 0)
        counts[path] = nth + 1
        if (path, nth) == (source.path, source.nth):
            hidden = dict(leaves(out))[source.hidden_out or ""]
            seen["hidden"] = hidden + _entering(source, module, args, kwargs)
        if (path, nth) == (last.path, last.nth):
            own = seen["hidden"] - _entering(last, module, args, kwargs)
            return substitute(out, {last.hidden_out or "": own})
        return None

    handles = [
        backbone.get_submodule(path).register_forward_hook(
            lambda m, a, k, out, path=path: swap(m, a, k, out, path), with_kwargs=True
        )
        for path in dict.fromkeys((source.path, last.path))
    ]
    args, kwargs = batch.bound.split()
    try:
        with torch.no_grad():
            return [tensor for _, tensor in leaves(backbone(*args, **kwargs))]
    finally:
        for handle in handles:
            handle.remove()


def _entering(call: Call, module: nn.Module, args: Any, kwargs: Any) -> Tensor | float:
    """What the caller adds to the output of a call that gives a residual; else nothing."""
    if call.base is None:
        return 0.0
    bound = bind(signature_of(module.forward), args, kwargs)
    return dict(bound.tensors())[call.hidden_in or ""]
