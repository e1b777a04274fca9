"""Gradient checkpointing: a block that is run again in a backward pass runs under the same decisions.

PyTorch calls a checkpointed block anew in the backward pass, where no forward is under way. What a
forward decided about the call is kept with the graph that it made, as long as that lives, and is found
by the memory of the call's arguments, which the checkpoint keeps.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointFunction

from exitkit.errors import ConfigError, PlanMismatchError
from exitkit.modes.flags import is_transformed
from exitkit.tree import leaves


class Runs(Protocol):
    """A forward that runs the calls of blocks."""

    def before_call(self) -> Runs:
        """The forward as it is now."""

    def held(self) -> Sequence[Tensor]:
        """What it may hand on as it is."""

    def call(self, gate: Any, site: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one call of a block."""


class Past:
    """A forward as it was when it met a call of a block: the forward itself goes on."""

    def __init__(self, forward: Runs, gate: Any, site: Any) -> None:
        self._forward, self._gate, self._site = forward.before_call(), gate, site

    def made(self, tensor: Tensor, given: Sequence[Tensor]) -> Any:
        """The node of a tensor if the call made it, else None.

        A node that is older must not hold this: what the forward keeps may hang from it, and a circle
        through a graph is never freed.

        Arguments:
            tensor: What came out of the call.
            given: What went into it.
        """
        node = tensor.grad_fn
        older = (*given, *self._forward.held())
        return None if any(node is t.grad_fn for t in older) else node

    def again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the call once more, with what was decided then."""
        return self._forward.before_call().call(self._gate, self._site, args, kwargs)


class Pasts:
    """What forwards decided about calls of one block that a backward pass may run again."""

    def __init__(self) -> None:
        self._known: list[tuple[_Place, weakref.ref[Past]]] = []

    def __bool__(self) -> bool:
        return bool(self._known)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the block has no graphs of its own."""
        return {"_known": []}

    def keep(
        self, past: Past, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]
    ) -> None:
        """Keeps a call, with these arguments, as long as the graph of the tensors that it made."""
        given = [t for _, t in leaves((list(args), dict(kwargs)))]
        nodes = [node for tensor in made if (node := past.made(tensor, given)) is not None]
        # Under torch.func tensors have no memory, and nothing is checkpointed.
        if not nodes or any(map(is_transformed, given)):
            return
        self._known = [(place, ref) for place, ref in self._known if ref() is not None]
        self._known.append((_Place(args, kwargs), weakref.ref(past)))
        for node in nodes:
            kept: Any = node.metadata  # a dict, which torch's stubs call a method
            kept.setdefault("exitkit", []).append(past)

    def find(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Past | None:
        """The forward that met this call, if a backward pass runs it again.

        Arguments:
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The forward, or None where all rows ran the block and nothing happened behind it.

        Raises:
            PlanMismatchError: If several forwards met a call on the same memory.
        """
        if torch._C._current_graph_task_id() == -1:
            return None
        here = _Place(args, kwargs)
        found = [
            past for place, ref in self._known if place.same(here) and (past := ref()) is not None
        ]
        if len(found) > 1:
            raise PlanMismatchError(
                "A checkpointed block is run again in a backward pass, and several forwards had called it "
                "on the very same tensors. Call backward() behind each forward."
            )
        return found[0] if found else None


class _Place:
    """Where the tensors of a call are in memory, as long as they are there."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        tensors = [t for _, t in leaves((list(args), dict(kwargs)))]
        self.storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]
        self.views = [(t.storage_offset(), tuple(t.shape), t.stride()) for t in tensors]

    def same(self, other: _Place) -> bool:
        if self.views != other.views:
            return False
        pairs = zip(self.storages, other.storages, strict=True)
        return all(a.cdata == b.cdata and not a.expired() for a, b in pairs)


def refuse_reentrant(where: str) -> None:
    """Refuses the reentrant form of gradient checkpointing, through which exits get no gradient.

    Arguments:
        where: Path of the block, for the message.

    Raises:
        ConfigError: If the caller is inside of it.
    """
    frame = sys._getframe(1)
    code = CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is code:
            raise ConfigError(
                f"Block {where!r} is checkpointed with use_reentrant=True, and rows leave the network "
                "early: what they leave with is made inside of the checkpoint, where no gradient reaches "
                "it. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False), as diffusers does, "
                "or model.policy = ek.policies.NeverExit() for such a forward."
            )
        frame = frame.f_back  # type: ignore[assignment]
