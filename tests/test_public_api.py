"""The public names, what `import exitkit` costs, and what no file does."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

import exitkit as ek
from tests import house
from tests.interpreter import ROOT, Interpreter

HEAVY = ("accelerate", "diffusers", "matplotlib", "timm", "torchmetrics", "torchvision")
SECONDS = 0.3  # CPU time beyond torch

# DESIGN.md, section 6.
NAMES = {
    "Calibration",
    "Comparison",
    "Entry",
    "LossConfig",
    "Metrics",
    "OutputConfig",
    "Policy",
    "RiskTarget",
    "Sample",
    "Sampler",
    "Trace",
    "UncertaintyConfig",
    "write_report",
    "ExitConfig",
    "ExitKitError",
    "ExitLoss",
    "ExitModel",
    "Inputs",
    "calibrate",
    "compare",
    "fit",
    "generate",
    "inspect",
    "list_adapters",
    "policies",
    "tasks",
    "unwrap",
    "wrap",
}


def test_public_names() -> None:
    assert set(ek.__all__) >= NAMES
    assert len(ek.__all__) == len(set(ek.__all__)) <= 45
    for name in ek.__all__:
        assert getattr(ek, name) is not None, name
        assert name in dir(ek)


def test_a_name_that_is_not_there_raises() -> None:
    with pytest.raises(AttributeError, match="wrapp"):
        _ = ek.wrapp


def test_modules_load_when_they_are_named_whatever_was_named_before(probe: Probe) -> None:
    for name in ("errors", "config", "policies", "tasks"):
        probe(f"import exitkit; assert exitkit.{name}.__name__.endswith({name!r})")


def test_public_names_are_documented() -> None:
    undocumented = [
        n for n in ek.__all__ if callable(getattr(ek, n)) and not getattr(ek, n).__doc__
    ]
    assert not undocumented


def test_every_module_imports() -> None:
    for name in modules("exitkit"):
        importlib.import_module(name)


def modules(package: str) -> list[str]:
    found = importlib.import_module(package)
    return [m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.")]


def test_both_packages_are_typed() -> None:
    assert (ROOT / "exitkit" / "py.typed").is_file()
    assert (ROOT / "adapters" / "exitkit_adapters" / "py.typed").is_file()


def test_adapters_is_a_folder_and_no_package() -> None:
    # A package would shadow AdapterHub's `adapters` for everybody who works in this folder.
    assert (ROOT / "adapters").is_dir()
    assert not (ROOT / "adapters" / "__init__.py").exists()


# ---------------------------------------------------------------------------------- import costs


class Cost(NamedTuple):
    seconds: float
    loaded: list[str]


Probe = Callable[..., Cost]


@pytest.fixture
def probe(fresh: Interpreter) -> Probe:
    """Runs a statement in a new process, torch imported before, and says what it cost."""

    def cost(statement: str, blocked: tuple[str, ...] = ()) -> Cost:
        program = f"""
import json, sys, time
for name in {blocked!r}:
    sys.modules[name] = None
before = time.process_time()
{statement}
seconds = time.process_time() - before
loaded = sorted(n for n in {HEAVY!r} if sys.modules.get(n) is not None)
print(json.dumps({{"seconds": seconds, "loaded": loaded}}))
"""
        done = fresh.run(program)
        assert done.returncode == 0, done.stderr
        return Cost(**json.loads(done.stdout.splitlines()[-1]))

    return cost


def test_importing_is_cheap_and_loads_no_extra(probe: Probe) -> None:
    runs = [probe("import exitkit") for _ in range(3)]
    assert [run.loaded for run in runs] == [[], [], []]
    assert median(run.seconds for run in runs) < SECONDS


def test_the_import_test_can_fail(probe: Probe) -> None:
    run = probe("import exitkit, matplotlib.pyplot")
    assert "matplotlib" in run.loaded
    assert run.seconds > SECONDS
    assert "matplotlib" not in probe("import exitkit").loaded, "programs see each other"


def test_every_module_imports_without_the_extras(probe: Probe) -> None:
    extras = ("accelerate", "diffusers", "matplotlib", "torchmetrics", "mlxtend")
    names = [n for n in modules("exitkit") if not n.endswith("__main__")]
    statement = "import importlib\n" + "\n".join(f"importlib.import_module({n!r})" for n in names)
    assert not set(extras) & set(probe(statement, extras).loaded)


# ---------------------------------------------------------------------------------- house rules


def files() -> list[tuple[str, Path]]:
    package = ROOT / "exitkit"
    found = [(p.relative_to(package).parts, p) for p in sorted(package.rglob("*.py"))]
    return [(parts[0].removesuffix(".py"), path) for parts, path in found]


def test_heavy_packages_are_imported_late() -> None:
    wrong = []
    for _, path in files():
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            wrong += [f"{path.name}: {n}" for n in names if n.split(".")[0] in HEAVY]
    assert not wrong, wrong


def test_adapters_see_the_adapter_class_alone() -> None:
    for path in sorted((ROOT / "adapters" / "exitkit_adapters").rglob("*.py")):
        ours = [n for n in house.imports(path) if n.startswith("exitkit.")]
        assert all(n.startswith("exitkit.surgery.adapter") for n in ours), f"{path.name}: {ours}"


def test_blocks_are_not_found_by_class_name() -> None:
    for part, path in files():
        if part == "surgery":
            assert "__name__.startswith" not in path.read_text(), path.name
            assert "__name__.endswith" not in path.read_text(), path.name


def test_nothing_is_unpickled() -> None:
    for _, path in files():
        assert "torch.load(" not in path.read_text(), path.name
        assert "import pickle" not in path.read_text(), path.name


def test_no_error_is_swallowed_around_surgery() -> None:
    wrong = []
    for part, path in files():
        if part not in ("surgery", "execution", "model", "modules", "pipelines", "wrapping"):
            continue
        # A broken plugin of a third party is a warning; an experiment that fails is tried in another
        # way, and when all of them fail the reasons are told.
        if path.name in ("registry.py", "trials.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler):
                continue
            everything = node.type is None or ast.unparse(node.type) in (
                "Exception",
                "BaseException",
            )
            if everything and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong, wrong
