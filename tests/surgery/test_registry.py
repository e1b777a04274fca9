"""A third party's adapter package, installed by pip, is found through its entry point."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import ExitKitError
from exitkit.testing import ContractError, check_adapter

TOWERS = '''
import torch
from torch import nn
from exitkit.surgery.adapter import Adapter

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x, emb):
        return x + torch.tanh(self.linear(x) + emb)

class Towers(nn.Module):
    """Two lists of blocks; exits make sense in the second only. Its time has an odd name."""
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(Block() for _ in range(3))
        self.second = nn.ModuleList(Block() for _ in range(3))
        self.tail = nn.Linear(8, 8)
    def forward(self, x, dirt):
        emb = torch.sin(dirt[:, None] * torch.linspace(0.1, 1, 8))
        for block in [*self.first, *self.second]:
            x = block(x, emb)
        return self.tail(x)

ADAPTER = Adapter(
    name="towers", matches="towers_package.Towers", blocks=("second.*",), timestep="dirt"
)

def register(registry):
    registry.register(ADAPTER)
'''
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


def towers() -> tuple[dict[str, Any], nn.Module, tuple[Tensor, Tensor]]:
    namespace: dict[str, Any] = {"__name__": "towers_package"}
    exec(TOWERS, namespace)
    torch.manual_seed(0)
    model = namespace["Towers"]().eval()
    return namespace, model, (torch.randn(4, 8), torch.rand(4) * 900)


def test_an_adapter_that_holds() -> None:
    namespace, model, example = towers()
    check_adapter(namespace["ADAPTER"], model, example)
    check_adapter(
        replace(namespace["ADAPTER"], matches=lambda m: hasattr(m, "second")), model, example
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matches": "elsewhere.Towers"}, "does not claim Towers"),
        ({"matches": lambda m: True}, "claims nn.Identity too"),
        ({"timestep": "time"}, "does not listen to it"),
    ],
)
def test_an_adapter_that_does_not(change: dict[str, Any], message: str) -> None:
    namespace, model, example = towers()
    with pytest.raises(ContractError, match=message):
        check_adapter(replace(namespace["ADAPTER"], **change), model, example)
    with pytest.raises(ExitKitError, match="which match 0 calls"):
        check_adapter(replace(namespace["ADAPTER"], blocks=("third.*",)), model, example)
    assert not any("forward" in vars(m) for m in model.modules())
