"""Tests; a package of its own, because other distributions install one named `tests` too."""
