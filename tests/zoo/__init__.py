"""Third-party models, shrunk: every one that the coverage table judges."""

from __future__ import annotations

import importlib
import pkgutil

from tests.zoo.specimen import Specimen

__all__ = ["Specimen", "specimens"]


def specimens() -> dict[str, Specimen]:
    """All specimens by name, of every module of this package that lists `SPECIMENS`."""
    found: dict[str, Specimen] = {}
    for module in pkgutil.iter_modules(__path__):
        listed = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SPECIMENS", ())
        for specimen in listed:
            if specimen.name in found:
                raise ValueError(f"two specimens are called {specimen.name!r}")
            found[specimen.name] = specimen
    return dict(sorted(found.items()))
