"""Weights of nothing but zeros, as zero-initialised skips have, and noise in their place for a while.

Nothing comes through such a weight, so no experiment sees what is read through it; once it is trained, it
matters. Noise in its place shows the way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def zeros_filled(model: nn.Module, stages: Collection[str]) -> Iterator[list[str]]:
    """Gives noise to weights outside of the stages that are all zero; no parameter is written to.

    Arguments:
        model: The backbone.
        stages: Paths of the modules that the stages call; what is inside of them stays.

    Yields:
        Paths of these weights.
    """
    generator = torch.Generator().manual_seed(0)
    known: dict[int, nn.Parameter] = {}
    found: list[str] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if inside(path, stages):
                continue
            for name, weight in module._parameters.items():
                if weight is None or name.endswith("bias") or not _is_zero(weight):
                    continue
                found.append(f"{path}.{name}".lstrip("."))
                if id(weight) not in known:
                    noise = torch.randn(weight.shape, generator=generator)
                    noise /= max(1, noise[0].numel() if noise.ndim > 1 else 1) ** 0.5
                    known[id(weight)] = nn.Parameter(noise.to(weight), requires_grad=False)
                stack.callback(module._parameters.__setitem__, name, weight)
                module._parameters[name] = known[id(weight)]
        yield found


def inside(path: str, outer: Collection[str]) -> bool:
    """Whether a module is one of these, or inside one."""
    ends = [at for at, letter in enumerate(path) if letter == "."]
    return path in outer or any(path[:at] in outer for at in ends)


def _is_zero(weight: Tensor) -> bool:
    able = weight.is_floating_point() and not weight.is_meta and weight.numel() > 0
    try:
        return able and not bool(weight.any())
    except NotImplementedError:  # packed, as torchao's are: what is quantised was trained
        return False
