"""Writes the tables of policies and of signals that the pages include, from the policies themselves.

`python docs/policy_tables.py` after a policy was added or changed; a test tells when it was forgotten.
"""

from __future__ import annotations

import re
from pathlib import Path
from sys import modules

from exitkit.policies import NEEDS, ExitRule, Policy, registered_policies

HERE = Path(__file__).parent / "tables"


def tables() -> dict[str, str]:
    """Every table by the name of its file."""
    own = [c for c in registered_policies().values() if c.__module__.startswith("exitkit.")]
    policies = [
        [f"`{c.__name__}`", f"`{c.name}`", *_what(c), _source(c)]
        for c in sorted(own, key=lambda c: (issubclass(c, ExitRule), c.__name__))
    ]
    head = ["Class", "Name", "Depth of a row", "Kind", "Needs", "Tunable", "Source"]
    signals = [[f"`{name}`", text] for name, text in NEEDS.items()]
    return {
        "policies.inc": _list_table(head, policies, "15 13 27 8 15 9 13"),
        "needs.inc": _list_table(["`needs`", "What is then there"], signals, "22 78"),
    }


def _what(cls: type[Policy]) -> list[str]:
    first = (cls.__doc__ or "").split("\n\n")[0].strip().replace("\n", " ")
    needs = ", ".join(f"`{n}`" for n in NEEDS if issubclass(cls, ExitRule) and n in cls.needs)
    tunable = f"`{cls.tunable.field}`" if cls.tunable else "–"
    return [first, "rule" if issubclass(cls, ExitRule) else "schedule", needs or "–", tunable]


def _source(cls: type[Policy]) -> str:
    """The references in the docstring of the policy's module, as links."""
    listed = (modules[cls.__module__].__doc__ or "").partition("References:")[2]
    links = re.findall(r"https://\S+", listed)
    names = [re.sub(r"https://(arxiv\.org/abs|aclanthology\.org)/", "", link) for link in links]
    pairs = zip(names, links, strict=True)
    return ", ".join(f"`{name} <{link}>`__" for name, link in pairs) or "–"


def _list_table(head: list[str], rows: list[list[str]], widths: str) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in [head, *rows]:
        lines += [f"   {'*' if not at else ' '} - {cell}" for at, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, text in tables().items():
        (HERE / name).write_text(text, encoding="utf-8")
