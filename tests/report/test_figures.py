"""All figures of a comparison, and what drawing them needs."""

from __future__ import annotations

import ast

from tests.interpreter import Interpreter


def test_reports_know_no_model(fresh: Interpreter) -> None:
    """Reports are drawn where no network can be: nothing of it is even imported."""
    done = fresh.run(
        "import sys, exitkit.report; print([n for n in sys.modules if n.startswith('exitkit.')])"
    )
    assert done.returncode == 0, done.stderr
    rooms = {name.split(".")[1] for name in ast.literal_eval(done.stdout)}
    assert {"report", "evaluation"} <= rooms
    assert rooms <= {"report", "evaluation", "execution", "errors", "_compat"}
