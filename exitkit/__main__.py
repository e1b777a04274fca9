"""`python -m exitkit` and `exitkit`: the command line, and how it reports what is refused."""

from __future__ import annotations

import os
import sys

from exitkit._compat import require
from exitkit.errors import ExitKitError


def main() -> None:
    """Runs the command line; what exitkit refuses is told in one line and ends with status 2."""
    # `python -m` puts the current folder on the path, a console script its own: studies lie here.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")
    try:
        require("typer", "cli", "The command line")
        from exitkit.cli import app

        app()
    except ExitKitError as error:
        print(f"exitkit: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
