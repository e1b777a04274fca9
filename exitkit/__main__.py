"""`python -m exitkit` and `exitkit`: the command line, and how it reports what is refused."""

from __future__ import annotations

import sys

from exitkit._compat import require
from exitkit.errors import ExitKitError


def main() -> None:
    """Runs the command line; what exitkit refuses is told in one line and ends with status 2."""
    try:
        require("typer", "cli", "The command line")
        from exitkit.cli import app

        app()
    except ExitKitError as error:
        print(f"exitkit: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
