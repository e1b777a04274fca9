"""Exits that are out of a backbone for a while: every replaced forward comes off, and goes back on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from exitkit.errors import ConfigError
from exitkit.execution.gate import GateSet
from exitkit.execution.patching import ForwardOverride, Replacement, put_back, restore

# Threads may switch the same model; what is inside `suspended` runs without the lock.
_SWITCH = threading.RLock()


@dataclass(frozen=True)
class _Off:
    """A forward that was taken off: where it was, and what is in its place meanwhile."""

    module: nn.Module
    ours: Replacement
    name: str
    left: Any


class Suspension:
    """Takes the gates and the override off a backbone as long as anybody wants it bare."""

    def __init__(self) -> None:
        self._users = 0
        self._off: list[_Off] = []

    @property
    def active(self) -> bool:
        """Whether the backbone is bare."""
        return self._users > 0

    @contextmanager
    def entered(self, gates: GateSet, override: ForwardOverride | None) -> Iterator[None]:
        """Keeps the backbone bare inside; where somebody else does already, until the last one leaves.

        Arguments:
            gates: The gates of its blocks.
            override: What sends its own calls through the exits, or None.

        Yields:
            Nothing.
        """
        with _SWITCH:
            self._users += 1
        try:
            with _SWITCH:
                if self._users == 1:
                    self._take_off(gates, override)
            yield
        finally:
            with _SWITCH:
                self._users -= 1
                if not self._users:
                    self._put_back()

    def forget(self) -> None:
        """Leaves off what is off: the model was undone meanwhile."""
        self._off = []

    def _take_off(self, gates: GateSet, override: ForwardOverride | None) -> None:
        pairs: list[tuple[nn.Module, Replacement, Callable[..., Any] | None]] = [
            (gate.block, gate, gate.bare) for gate in gates.gates.values()
        ]
        if override is not None:
            pairs.append((override.backbone, override, override.replaced))
        for module, ours, bare in pairs:
            name = restore(module, ours, bare)
            if name is not None:
                self._off.append(_Off(module, ours, name, module.__dict__.get(name)))

    def _put_back(self) -> None:
        while self._off:
            off = self._off[-1]
            put_back(off.module, off.ours, off.name, off.left)
            self._off.pop()  # last: an interrupted call ends with the next one

    def __getstate__(self) -> dict[str, Any]:
        """Refuses a copy, whose exits nobody would put back."""
        if self.active:
            raise ConfigError(
                "The exits of this model are suspended: a copy or a pickle of it would never get them "
                "back. Make it outside of `with model.suspended():`."
            )
        return vars(self)
