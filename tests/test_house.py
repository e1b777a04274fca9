"""The house of CONTRIBUTING.md holds: floors, circles, parameters, rooms, a test for each module."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests import house


def test_imports_only_go_down() -> None:
    assert not house.upward()


def test_no_module_imports_itself_through_others() -> None:
    assert not house.circle()


def test_no_function_has_too_many_parameters() -> None:
    assert not house.wide()


def test_no_file_is_too_long() -> None:
    assert not house.long_files()


def test_no_room_is_too_large() -> None:
    assert max(house.rooms().values()) <= house.LARGEST_ROOM


def test_carried_is_asked_for_in_few_places() -> None:
    assert house.carried_asked() <= house.CARRIED_ASKED


def test_every_module_has_a_test_file_of_its_name() -> None:
    assert not house.without_tests()


def test_contributing_names_every_room() -> None:
    text = (house.ROOT / "CONTRIBUTING.md").read_text()
    missing = [room for rooms in house.FLOORS for room in rooms if f"`{room}`" not in text]
    assert missing == ["__main__"]


# -------------------------------------------------------------------------------- that it can fail


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house with one fault of each kind."""
    package = tmp_path / "exitkit"
    sources = {
        "heads/one.py": """
            from typing import TYPE_CHECKING

            if TYPE_CHECKING:
                from exitkit.model import ExitModel

            def late():
                from exitkit.execution.gate import Gate
        """,
        "policies/base.py": "from exitkit.surgery import plan",
        "report/a.py": "from exitkit.report.b import y",
        "report/b.py": "def f():\n    from exitkit.report.a import x",
        "evaluation/__init__.py": "from exitkit.evaluation.c import z",
        "evaluation/c.py": "",
        "evaluation/d.py": "",
        "training/fit.py": "def fit(a, b, c, d, e, f, g, h, i, j, k, l, m): ...",
        "model.py": "def f(self, a, b, c, d, e, f, g, h): ...\ndef g(a, b, c, d, e, f, g, h, i): ...",
        "config.py": 'def f(kind): return kind == "carried" or "carried" != kind',
        "cli.py": "x = 1\n" * 301,
    }
    for name, text in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "PACKAGE", package)
    return tmp_path


def test_every_fault_is_found(faulty: Path) -> None:
    assert house.upward() == [
        "exitkit.heads.one imports exitkit.model.ExitModel",
        "exitkit.heads.one imports exitkit.execution.gate.Gate",
        "exitkit.policies.base imports exitkit.surgery.plan",
    ]
    assert set(house.circle()) == {"exitkit.report.a", "exitkit.report.b"}
    assert house.wide() == ["exitkit.model.g (9)", "exitkit.training.fit.fit (13)"]
    assert house.long_files() == ["exitkit.cli (301)"]
    assert next(iter(house.rooms())) == "cli"
    assert house.carried_asked() == 2
    assert len(house.without_tests()) == 10
    (faulty / "tests" / "report").mkdir(parents=True)
    (faulty / "tests" / "report" / "test_a.py").touch()
    assert len(house.without_tests()) == 9
    assert house.main() == 1


def test_circles_through_a_package_are_found(faulty: Path) -> None:
    """A module that takes its neighbour out of the package imports the package, and all it imports."""
    (faulty / "exitkit" / "report" / "b.py").write_text("")
    assert not house.circle()
    taking = faulty / "exitkit" / "evaluation" / "c.py"
    taking.write_text("from exitkit.evaluation import d")
    assert set(house.circle()) == {"exitkit.evaluation", "exitkit.evaluation.c"}
    taking.write_text("from exitkit.evaluation.d import z")  # the way out
    assert not house.circle()
