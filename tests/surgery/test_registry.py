"""A third party's adapter package, installed by pip, is found through its entry point."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("towers_package:register", "['towers'] ['second.0', 'second.1', 'second.2'] dirt"),
        # The control: an entry point that leads nowhere is told, and the rest goes on without it.
        pytest.param(
            "towers_package:nothing",
            "[] ['first.0', 'first.1', 'first.2', 'second.0'",
            marks=pytest.mark.slow,
        ),
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
