"""Everything about a module that wrapping must leave, and unwrapping must restore."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.modes import snapshot as modes
from exitkit.testing.contract import require

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)


class Snapshot:
    """Everything about a module that `unwrap` must give back.

    Arguments:
        model: The module.
        own: Paths of what its forward itself changes from call to call: a counter, a cache.
    """

    def __init__(self, model: nn.Module, own: Collection[str] = ()) -> None:
        self._own, self._inside = set(own), modes.Snapshot.of(model)
        self.state = {key: value.clone() for key, value in _tensors(model).items()}
        self.keys = list(model.state_dict())
        self.facts = {path: _facts(module) for path, module in model.named_modules()}

    def compare(self, model: nn.Module) -> None:
        """Raises ContractError where the module is not what it was."""
        name = type(model).__name__
        require(
            list(model.state_dict()) == self.keys,
            f"{name}: unwrap changed the keys of the state dict: "
            f"{sorted(set(self.keys) ^ set(model.state_dict()))}.",
        )
        now = _tensors(model)
        changed = [key for key in self.state if not torch.equal(self.state[key], now[key])]
        require(not changed, f"{name}: unwrap left other values in {changed[:5]}.")
        modules = {path: _facts(module) for path, module in model.named_modules()}
        require(
            list(modules) == list(self.facts),
            f"{name}: unwrap changed the submodules: {sorted(set(modules) ^ set(self.facts))[:5]}.",
        )
        for path, facts in self.facts.items():
            for what, value in facts.items():
                require(
                    modules[path][what] == value,
                    f"{name}: after unwrap, {what} of {path or 'the backbone'!r} is "
                    f"{modules[path][what]}, before wrap it was {value}.",
                )
        self._inside.restore()
        left = sorted(set(self._inside.left) - self._own)
        require(
            not left,
            f"{name}: after unwrap, what hangs on it is not what it was before wrap: {left[:5]}.",
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _facts(module: nn.Module) -> dict[str, Any]:
    forward = module.forward
    return {
        "the module": (id(module), type(module).__qualname__),
        "the attributes": sorted(vars(module)),
        "forward": id(getattr(forward, "__func__", forward)),
        "the signature": str(inspect.signature(forward)),
        "the hooks": {hook: list(getattr(module, hook)) for hook in _HOOKS},
        "the training flag": module.training,
        "requires_grad": [p.requires_grad for p in module.parameters(recurse=False)],
    }
