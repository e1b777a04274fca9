"""A third party's adapter package, installed by pip, is found through its entry point."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import exitkit as ek
from exitkit.surgery.registry import Registry
from tests.surgery.towers import TOWERS

LOOK = """
import torch, exitkit as ek
from towers_package import Towers
plan = ek.inspect(Towers().eval(), example_inputs=(torch.randn(3, 8), torch.rand(3) * 900))
print(ek.list_adapters("tow*"), [s.path for s in plan.stages], plan.timestep)
"""


def wheel(folder: Path, entry: str) -> Path:
    """A wheel made by hand: no build backend has to be there."""
    info = "towers_package-1.0.dist-info"
    files = {
        "towers_package.py": TOWERS,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: towers-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[exitkit.adapters]\ntowers = {entry}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = folder / "towers_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Unpacks a wheel beside the packages of this process, which is what pip does with a pure one."""

    def install(entry: str) -> None:
        with zipfile.ZipFile(wheel(tmp_path, entry)) as archive:
            archive.extractall(tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "site")

    yield install
    sys.modules.pop("towers_package", None)


def test_the_entry_point_of_a_package_is_found(installed: Callable[[str], None]) -> None:
    installed("towers_package:register")
    known = Registry()
    assert "towers" in known.names()
    module = importlib.import_module("towers_package")
    adapter = known.resolve(module.Towers())
    assert adapter is module.ADAPTER
    example = (torch.randn(3, 8), torch.rand(3) * 900)
    plan = ek.inspect(module.Towers().eval(), example_inputs=example, adapter=adapter)
    assert [s.path for s in plan.stages] == ["second.0", "second.1", "second.2"]


def test_an_entry_point_that_leads_nowhere_is_told(installed: Callable[[str], None]) -> None:
    installed("towers_package:nothing")
    known = Registry()
    with pytest.warns(UserWarning, match="entry point 'towers'.*are not available"):
        names = known.names()
    assert "towers" not in names and "cosmos3" in names, "the rest goes on without it"


@pytest.mark.slow  # pip and a process of its own; what they come to is tested above
@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("towers_package:register", "['towers'] ['second.0', 'second.1', 'second.2'] dirt"),
        # The control: an entry point that leads nowhere is told, and the rest goes on without it.
        ("towers_package:nothing", "[] ['first.0', 'first.1', 'first.2', 'second.0'"),
    ],
)
def test_pip_makes_an_adapter_known(entry: str, expected: str, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--disable-pip-version-check", "--target", str(target)]
    subprocess.run([*install, str(wheel(tmp_path, entry))], check=True)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{LOOK}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)
    assert ("'towers'" in done.stderr) == ("nothing" in entry), done.stderr
