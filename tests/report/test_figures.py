"""All figures of a comparison, and what drawing them needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_reports_know_no_model():
    """Reports are drawn where no network can be: nothing of it is even imported."""
    program = (
        "import sys, exitkit.report; print([n for n in sys.modules if n.startswith('exitkit.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rooms = {name.split(".")[1] for name in ast.literal_eval(done.stdout)}
    assert {"report", "evaluation"} <= rooms
    assert rooms <= {"report", "evaluation", "execution", "errors", "_compat"}
