"""Adapters by name; those of other packages come through the entry point `exitkit.adapters`."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import warnings

from torch import nn

from exitkit.errors import ConfigError, expect
from exitkit.surgery.adapter import Adapter

_GROUP = "exitkit.adapters"
MAKE = "Make one: ek.Adapter(name, matches, ...)."


class Registry:
    """Holds adapters; entry points are read at the first look-up."""

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}
        self._discovered = False

    @classmethod
    def of(cls, *adapters: Adapter) -> Registry:
        """A registry of these adapters alone; entry points are not read."""
        made = cls()
        made._discovered = True
        for adapter in adapters:
            made.register(adapter)
        return made

    def register(self, adapter: Adapter) -> Adapter:
        """Adds an adapter.

        Arguments:
            adapter: The adapter.

        Returns:
            The same adapter, so that a module can register what it defines.

        Raises:
            ConfigError: If it is no adapter, or the name is taken.
        """
        expect("register_adapter", adapter, Adapter, "an adapter", MAKE)
        if adapter.name in self._adapters:
            raise ConfigError(
                f"An adapter named {adapter.name!r} is registered already. Choose another name."
            )
        self._adapters[adapter.name] = adapter
        return adapter

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        for entry in importlib.metadata.entry_points(group=_GROUP):
            try:
                entry.load()(self)
            except Exception as error:  # a broken plugin of someone else must not break wrap()
                warnings.warn(
                    f"The adapter package behind entry point {entry.name!r} ({entry.value}) failed: "
                    f"{type(error).__name__}: {error}. Its adapters are not available.",
                    stacklevel=3,
                )

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a wildcard, sorted."""
        self._discover()
        return sorted(fnmatch.filter(self._adapters, pattern))

    def resolve(self, model: nn.Module) -> Adapter | None:
        """The adapter of a backbone, or None where probing suffices.

        Arguments:
            model: The backbone.

        Returns:
            The adapter that matches, if any.

        Raises:
            ConfigError: If several match.
        """
        self._discover()
        known = self._adapters.values()
        classes = {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}
        found = [a for a in known if isinstance(a.matches, str) and a.matches in classes]
        # An exact class says more than a predicate.
        found = found or [a for a in known if not isinstance(a.matches, str) and a.matches(model)]
        if len(found) > 1:
            raise ConfigError(
                f"{type(model).__name__} is matched by several adapters: "
                f"{', '.join(a.name for a in found)}. Pass one of them as adapter=."
            )
        return found[0] if found else None


registry = Registry()


def register_adapter(adapter: Adapter) -> Adapter:
    """Makes an adapter known to `wrap` and `inspect`; see `Registry.register`."""
    return registry.register(adapter)


def list_adapters(pattern: str = "*") -> list[str]:
    """Names of the known adapters that match a wildcard such as `"*unet*"`."""
    return registry.names(pattern)
