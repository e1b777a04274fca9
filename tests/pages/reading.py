"""Reads the code out of README and the pages of docs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exitkit as ek

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/*.rst",
        "docs/*.md",
        "docs/results/*.md",
        "benchmarks/results/*.md",
        "adapters/*.md",
        "examples/**/README.md",
    )
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
"""Every page that speaks of the present; what CHANGELOG names may be gone."""

OTHERS = {"venv", "pip", "pytest", "accelerate", "torch/distributed/run"}
"""Programs of other packages."""

LITERAL = re.compile(r"(?<!`)(`{1,2})(?!`)([^`]+?)\1(?!`)")
PROGRAM = re.compile(r"python (?:-m ([a-z][\w.]*)|([\w/]+\.py))")
NAME = re.compile(r"\b(?:ek|exitkit)(?:\.[A-Za-z_]\w*)+")


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, reStructuredText or Markdown, in order."""
    found = [textwrap.dedent(part) for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    for part in page.split(".. code-block:: python\n")[1:]:
        lines = part.splitlines()
        ends = (i for i, line in enumerate(lines) if line and not line.startswith(" "))
        found.append(textwrap.dedent("\n".join(lines[: next(ends, len(lines))])))
    return found


def literals(page: str) -> list[str]:
    """What stands between backquotes."""
    return [" ".join(text.split()) for _, text in LITERAL.findall(page)]


def resolve(name: str) -> Any:
    """The object of a dotted name that begins with `ek` or `exitkit`.

    Raises:
        AttributeError: If there is none.
    """
    first, *rest = name.split(".")
    found: Any = ek
    path = "exitkit"
    for part in rest:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError as error:
                raise AttributeError(f"{first}: there is no {path}") from error
        found = getattr(found, part)
    return found


def programs(page: str) -> set[str]:
    """The modules and files that a page says to run, as paths from the root."""
    return {
        file or module.rstrip(".").replace(".", "/") for module, file in PROGRAM.findall(page)
    } - OTHERS


def exists(program: str) -> bool:
    """Whether there is a program of that path."""
    return (ROOT / program).is_file() or any(
        (ROOT / f"{program}{end}").is_file() for end in (".py", "/__main__.py")
    )


def calls(code: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of exitkit's functions in a piece of Python, with their names."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if NAME.fullmatch(name):
                yield name, node


def misspelt(name: str, call: ast.Call) -> str | None:
    """What is wrong with a call: the keywords that its function does not take.

    An ellipsis (`...`) stands for whatever is missing.
    """
    signature = inspect.signature(resolve(name))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    given = [k.arg for k in call.keywords if k.arg is not None]
    unknown = [k for k in given if k not in signature.parameters]
    return f"{name} takes no {', '.join(unknown)}" if unknown and not open_ended else None
