"""Measures the house: floors, circles, parameters, rooms, tests. `python -m tests.house` prints it."""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "exitkit"

# Imports go down only, whatever stands around them: a function, or a block for type checkers.
FLOORS = (
    {"errors", "config", "_compat", "tree", "modes"},
    {"surgery", "policies"},
    {"heads"},
    {"execution", "persistence"},
    {"model", "summary"},
    {"wrapping", "sampling"},
    {"pipelines", "training", "calibration"},
    {"evaluation"},
    {"report"},
    {"benchmark"},
    {"testing", "cli"},
    {"__main__"},
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
SEPARATE = ({"surgery", "policies"},)
"""Rooms of one floor that do not know each other."""

MOST_PARAMETERS = 8
FIT_PARAMETERS = 12
LARGEST_ROOM = 0.15  # surgery: finding where to cut, and the experiments that establish it
CARRIED_ASKED = 2

# Modules of names alone: what they hold is tested where it is used.
UNTESTED = {"__main__"}


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    path: Path

    @property
    def parts(self) -> tuple[str, ...]:
        """Rooms and name, `__init__` left out."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts

    @property
    def name(self) -> str:
        """Dotted name."""
        return ".".join(("exitkit", *self.parts))

    @property
    def room(self) -> str:
        """The folder directly below the package, or the file itself."""
        return self.parts[0] if self.parts else "__init__"

    @property
    def text(self) -> str:
        """The source."""
        return self.path.read_text()


def modules() -> list[Module]:
    """All files of the package."""
    return [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever the import stands."""
    for module, names in import_lines(path):
        yield from (f"{module}.{name}" for name in names) if names else [module]


def import_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Modules that a file imports, each with the names that are taken out of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join((*here, *([node.module] if node.module else [])))
            yield module, [alias.name for alias in node.names]


def upward() -> list[str]:
    """Imports that go up, or into a room that the importing one does not know."""
    wrong = []
    for module in modules():
        if module.room in ("__init__", "__main__"):
            continue
        if module.room not in FLOOR:
            wrong.append(f"{module.name} is on no floor")
            continue
        for name in imports(module.path):
            there = name.split(".")[1] if name.startswith("exitkit.") else module.room
            if there not in FLOOR or there == module.room:
                continue
            strangers = any({module.room, there} == pair for pair in SEPARATE)
            if FLOOR[there] > FLOOR[module.room] or strangers:
                wrong.append(f"{module.name} imports {name}")
    return wrong


def circle() -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    known = {module.name for module in modules()}
    graph: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        if module.room == "__init__":
            continue
        for package, names in import_lines(module.path):
            # Whoever takes a module out of a package needs both: the package's own imports run first.
            needed = {package, *(f"{package}.{name}" for name in names)} & known
            graph[module.name] |= needed - {module.name, "exitkit"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def wide() -> list[str]:
    """Functions with too many parameters."""
    found = []
    for module in modules():
        for node in ast.walk(ast.parse(module.text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            if count > (FIT_PARAMETERS if node.name == "fit" else MOST_PARAMETERS):
                found.append(f"{module.name}.{node.name} ({count})")
    return found


def long_files() -> list[str]:
    """Files above 300 lines."""
    counts = {module.name: module.text.count("\n") for module in modules()}
    return [f"{name} ({count})" for name, count in counts.items() if count > 300]


def rooms() -> dict[str, float]:
    """Share of the package's lines by room, largest first."""
    lines: Counter[str] = Counter()
    for module in modules():
        lines[module.room] += module.text.count("\n")
    total = sum(lines.values())
    return {room: count / total for room, count in lines.most_common()}


def carried_asked() -> int:
    """How often a kind of heads is compared with the word `carried`."""
    asked = 0
    for module in modules():
        for node in ast.walk(ast.parse(module.text)):
            if isinstance(node, ast.Compare):
                values = [node.left, *node.comparators]
                asked += any(isinstance(v, ast.Constant) and v.value == "carried" for v in values)
    return asked


def without_tests() -> list[str]:
    """Modules that no test file of their name stands for."""
    missing = []
    for module in modules():
        if module.path.name == "__init__.py" or module.parts[-1] in UNTESTED:
            continue
        *folders, name = module.parts
        wanted = Path("tests", *folders, f"test_{name.lstrip('_')}.py")
        if not (ROOT / wanted).is_file():
            missing.append(f"{module.name}: {wanted}")
    return missing


def main() -> int:
    """Prints every measure and says whether all hold."""
    shares = rooms()
    largest, share = next(iter(shares.items()))
    faults = {
        "imports that go up": upward(),
        "modules in a circle": circle(),
        f"functions above {MOST_PARAMETERS} parameters (fit {FIT_PARAMETERS})": wide(),
        "files above 300 lines": long_files(),
        "modules without a test file of their name": without_tests(),
    }
    for name, found in faults.items():
        print(f"{name}: {len(found)}", *found, sep="\n  ")
    print(f"comparisons with 'carried': {carried_asked()} (at most {CARRIED_ASKED})")
    print(f"largest room: {largest}, {share:.1%} (at most {LARGEST_ROOM:.0%})")
    print("rooms: " + ", ".join(f"{room} {part:.1%}" for room, part in shares.items()))
    held = not any(faults.values()) and carried_asked() <= CARRIED_ASKED and share <= LARGEST_ROOM
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
