"""Programs in processes of their own, all forked from one interpreter that has imported what is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# What a child raises ends it as it would end any program: nothing is caught here.
_FORKS = """
import json, os, sys
for name in json.loads(sys.argv[1]):
    __import__(name)
for line in sys.stdin:
    code, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["-c"]
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a program ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Interpreter:
    """Runs programs one after the other; none sees what another has imported or changed.

    Arguments:
        folder: Where the output of a program is kept until it is read.
        imports: Modules that are there from the beginning.
        flags: Further flags of the interpreter.
    """

    def __init__(self, folder: Path, *imports: str, flags: tuple[str, ...] = ()) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        places = [str(ROOT), str(ROOT / "adapters")]
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", _FORKS, json.dumps(imports)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> Done:
        """Runs one program to its end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([code, str(self.out), str(self.err)]) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline()
        assert status, "the interpreter itself has ended"
        return Done(int(status), self.out.read_text(), self.err.read_text())

    def close(self) -> None:
        """Ends the interpreter."""
        self.process.communicate()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
