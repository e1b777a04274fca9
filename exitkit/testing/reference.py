"""A backbone run to the end with one hidden state put behind another stage: what exits are held to.

Hooks alone do it, without gates: what an exit through the tail should give is known independently.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.spec import Plan
from exitkit.tree import leaves, substitute


def landed(backbone: nn.Module, plan: Plan, bound: Bound, source: int, landing: int) -> Any:
    """Runs the backbone with the hidden state behind one stage put behind a later one.

    Arguments:
        backbone: The backbone.
        plan: Its plan.
        bound: Arguments by name.
        source: The stage whose hidden state is taken.
        landing: The stage behind which it is put.

    Returns:
        The backbone's output.
    """
    calls = [(stage.index, call) for stage in plan.stages for call in stage.calls]
    at = {(call.path, call.nth): i for i, (_, call) in enumerate(calls)}
    ends = {stage.index: stage.calls[-1] for stage in plan.stages}
    counts: dict[str, int] = {}
    entered: dict[int, Tensor] = {}
    kept: dict[str, Tensor] = {}

    def enter(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        i = at.get((path, counts.get(path, 0)))
        name = None if i is None else calls[i][1].hidden_in
        if i is not None and name is not None:
            tensors = dict(bind(signature_of(module.forward), args, kwargs).tensors())
            entered[i] = tensors[name]

    def leave(path: str, out: Any) -> Any:
        nth = counts.get(path, 0)
        counts[path] = nth + 1
        i = at.get((path, nth))
        if i is None:
            return None
        stage, call = calls[i]
        tensor = dict(leaves(out)).get(call.hidden_out or "")
        if tensor is None:
            return None
        base: Tensor | float = 0.0
        if call.summed:
            base = kept.get("sum", torch.zeros_like(tensor))
            kept["sum"] = base + tensor
        elif call.base is not None:
            base = entered[i - call.base]
        if call is ends[source]:
            kept["hidden"] = base + call.scale * tensor
        if call is ends[landing]:
            return substitute(out, {call.hidden_out or "": (kept["hidden"] - base) / call.scale})
        return None

    with ExitStack() as stack, torch.no_grad():
        for path in dict.fromkeys(call.path for _, call in calls):
            module = backbone.get_submodule(path)
            stack.callback(
                module.register_forward_pre_hook(
                    lambda m, a, k, path=path: enter(path, m, a, k), with_kwargs=True
                ).remove
            )
            stack.callback(
                module.register_forward_hook(lambda m, a, out, path=path: leave(path, out)).remove
            )
        args, kwargs = bound.split()
        return backbone(*args, **kwargs)
