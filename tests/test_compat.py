"""Optional dependencies: what is not there is named with its install, what is broken shows itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exitkit import errors
from exitkit._compat import require


def test_what_is_there_is_imported() -> None:
    import torch.nn.functional

    assert require("torch.nn.functional", "none", "this test") is torch.nn.functional


def test_a_missing_extra_names_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        errors.MissingExtraError, match=r'fit.*accelerate.*pip install "exitkit-torch\[train'
    ):
        require("accelerate", "train", "fit")


def test_a_missing_part_of_a_package_is_a_missing_package() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"`not_there_at_all`, which is not"):
        require("not_there_at_all.part", "train", "fit")


def test_a_broken_extra_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import a_dependency_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_not_there") as caught:
        require("half_installed", "train", "fit")
    assert not isinstance(caught.value, errors.MissingExtraError)
