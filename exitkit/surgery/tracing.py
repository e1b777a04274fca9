"""The second view: torch.fx with the stages as leaves, where it can trace.

torch.fx follows few third-party forwards, but where it does, its order of stages must be the one that
the dry run saw. A disagreement means that the forward takes another path than the example took.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch.fx
from torch import nn

from exitkit.errors import PlanMismatchError
from exitkit.modes.snapshot import kept_state

_ONE = threading.RLock()
"""torch.fx replaces methods of `nn.Module` while it traces: two tracers at once would keep each other's."""


class _StageTracer(torch.fx.Tracer):
    def __init__(self, stages: frozenset[str]) -> None:
        super().__init__()
        self._stages, self._thread = stages, threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:  # a network that another thread runs meanwhile
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._stages:
            return True
        # torch's own containers (nn.TransformerEncoder) are leaves by default, blocks and all.
        if any(path.startswith(f"{module_qualified_name}.") for path in self._stages):
            return False
        return super().is_leaf_module(m, module_qualified_name)


def graph_view(module: nn.Module, stages: tuple[str, ...]) -> tuple[str, ...] | str:
    """Traces the backbone and lists the stage calls in graph order.

    Arguments:
        module: The backbone.
        stages: Dotted paths of the modules that stages call, in the order of the dry run.

    Returns:
        The paths in graph order, or the reason why torch.fx cannot trace.
    """
    try:
        with _ONE, kept_state(module):  # proxies go where the forward caches, constants to the root
            graph = _StageTracer(frozenset(stages)).trace(module)
    except Exception as error:
        # Third-party code meets proxies: whatever it raises is its reason. An error of ours is none.
        if _is_ours(error):
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    return tuple(
        str(n.target) for n in graph.nodes if n.op == "call_module" and n.target in set(stages)
    )


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised in exitkit's own code."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return str(module).split(".")[0] == "exitkit"


def check_agreement(module: nn.Module, stages: tuple[str, ...]) -> str:
    """Compares the graph's order of stages with the dry run's.

    Arguments:
        module: The backbone.
        stages: Paths of the stage modules in the order of the dry run.

    Returns:
        What the view said, in words.

    Raises:
        PlanMismatchError: If torch.fx traces another order.
    """
    seen = graph_view(module, stages)
    if isinstance(seen, str):
        return f"torch.fx cannot trace this forward ({seen}); dry runs decide alone"
    if seen != stages:
        raise PlanMismatchError(
            f"{type(module).__name__}: the dry run and torch.fx disagree on the order of blocks: "
            f"ran {list(stages)}, traced {list(seen)}. The forward probably branches on an argument "
            "that the example does not set; pass example_inputs as the model is called in use."
        )
    return f"torch.fx traces {len(seen)} block calls in the same order"
