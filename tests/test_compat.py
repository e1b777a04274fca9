"""Optional dependencies and versions: what is missing is named with its install, what is broken shows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import packaging
import pytest
import timm
import torch
from diffusers import DDIMScheduler
from torch import nn

import exitkit as ek
from exitkit import errors
from exitkit._compat import library_of, require, version_conflicts, version_of, versions_for


class OfATest(nn.Module):
    pass


def test_versions_of_a_backbone_name_its_library() -> None:
    found = versions_for(timm.create_model("resnet10t", pretrained=False))
    assert found == {
        "exitkit": ek.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }
    assert library_of(DDIMScheduler()) == "diffusers"


def test_a_class_of_no_library_adds_none() -> None:
    assert library_of(OfATest()) is None
    assert set(versions_for(OfATest())) == {"exitkit", "torch"}
    assert set(versions_for(nn.Linear(1, 1))) == {"exitkit", "torch"}


def test_a_module_without_a_version_has_that_of_its_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = ModuleType("packaging")
    monkeypatch.setitem(sys.modules, "packaging", bare)
    assert version_of("packaging") == packaging.__version__
    assert version_of("exitkit_no_such_library") is None


@pytest.mark.parametrize(
    ("mine", "theirs", "conflict"),
    [
        ("2.14.1+cu130", "2.6.0", False),
        ("2.14.1", "3.0.0", True),
        ("3.0.0.dev1", "2.14.1", True),
        ("0.42.1", "0.31.0", False),
        ("1!2.0", "2.0", True),
        ("10.0", "9.9", True),  # no comparison of text
        ("unreadable", "unreadable", False),
        ("unreadable", "1.0", True),
    ],
)
def test_another_major_version_conflicts(
    mine: str, theirs: str, conflict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = ModuleType("exitkit_some_library")
    library.__version__ = mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "exitkit_some_library", library)
    found = version_conflicts({"exitkit_some_library": theirs})
    assert bool(found) is conflict
    assert all(mine in text and theirs in text for text in found)


def test_a_library_that_is_missing_conflicts() -> None:
    (told,) = version_conflicts({"torch": str(torch.__version__), "exitkit_no_such_library": "1.2"})
    assert "exitkit_no_such_library 1.2" in told
    assert "not installed" in told


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
