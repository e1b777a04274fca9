"""Architecture adapters that come with exitkit.

Probing finds the blocks of a backbone by running it, so most families need no adapter. This package
is the place for what probing *cannot* know: one architecture family a file, declarative, added to
`ADAPTERS` below. Today that is Cosmos 3, which has no batch axis.

The package enters exitkit by the same door as a third party's: the entry point group
`exitkit.adapters`. It imports `exitkit.surgery.adapter` and nothing else of exitkit, and a family's
file names the third-party class by its dotted path instead of importing it. `adapters/README.md`
says how to write one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from exitkit_adapters.cosmos3 import COSMOS3

if TYPE_CHECKING:
    from exitkit.surgery.adapter import Adapter

__all__ = ["ADAPTERS", "register"]

ADAPTERS: tuple[Adapter, ...] = (COSMOS3,)
"""All adapters of this package, in the order in which they are registered."""


class _Registry(Protocol):
    """The part of exitkit's registry that an adapter package sees."""

    def register(self, adapter: Adapter, /) -> object:
        """Add one adapter; refuses a second claim on the same class."""


def register(registry: _Registry) -> None:
    """Hand every built-in adapter to exitkit.

    Args:
        registry: The registry that exitkit fills on its first look-up.
    """
    for adapter in ADAPTERS:
        registry.register(adapter)
