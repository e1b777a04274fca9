"""Counting the multiply-accumulates of every product that runs, in whatever module it is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class MacCounter:
    """Counts in its body.

    Arguments:
        fused: Whether attention runs in the kernels that it usually runs in. If not, it runs as plain
            products, which are countable on every device, and whose result has other strides.
    """

    def __init__(self, fused: bool = False) -> None:
        attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        self._flops = FlopCounterMode(display=False, custom_mapping=attention)
        # Which module it was is not asked. The tracker that tells hangs hooks on the gradients of
        # what modules are given, and views of parameters made without gradients have none.
        self._flops.mod_tracker = _Untracked()  # type: ignore[assignment]
        self._fused, self._stack = fused, ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if not self._fused:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self._flops)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def macs(self) -> float:
        """Multiply-accumulates so far."""
        return self._flops.get_total_flops() / 2


class _Untracked:
    """In place of PyTorch's tracker of modules: everything is in one."""

    parents = frozenset({"Global"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops
