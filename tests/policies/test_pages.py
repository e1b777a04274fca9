"""The pages on policies: their tables are current, and their code runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from exitkit.errors import ConfigError
from exitkit.policies import NEEDS, registered_policies, registry
from tests.backbones import case
from tests.pages.reading import blocks
from tests.policies.spy import between

DOCS = Path(__file__).parents[2] / "docs"


def test_tables_are_what_the_policies_say() -> None:
    tables = runpy.run_path(str(DOCS / "policy_tables.py"))["tables"]()
    assert {path.name for path in (DOCS / "tables").iterdir()} == set(tables)
    for name, text in tables.items():
        written = (DOCS / "tables" / name).read_text(encoding="utf-8")
        assert written == text, "run `python docs/policy_tables.py`"
    for cls in registered_policies().values():
        assert (
            not cls.__module__.startswith("exitkit.")
            or f"`{cls.__name__}`" in tables["policies.inc"]
        )
    assert all(f"`{name}`" in tables["needs.inc"] for name in NEEDS)


def test_a_policy_in_twenty_lines_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", registry.registered_policies())
    backbone = case("uvit")
    (x, t), _ = backbone.inputs(4)
    page = ModuleType("write_a_policy")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    names: dict[str, Any] = vars(page)
    names |= {"backbone": backbone.make(), "x": x, "t": t}
    code = blocks((DOCS / "write-a-policy.rst").read_text(encoding="utf-8"))
    assert len(code) == 4
    with torch.no_grad():
        for block in code:
            exec(compile(block, "write-a-policy.rst", "exec", dont_inherit=True), names)
    assert "rows by depth" in capsys.readouterr().out
    model, exits = names["model"], len(names["model"].exits)
    assert model.trace.depth.tolist() == [[exits + 1, 1, exits + 1, 1]]
    # The rule of the page against a loop over what it compares.
    seen = [exit.detach() for exit in model(x, t, output_exits=True).exits]
    change = [(b - a).flatten(1).abs().amax(dim=1) for a, b in zip(seen, seen[1:], strict=False)]
    for threshold in (0.0, *between(torch.stack(change)), 1e3):
        model.policy = names["Settled"](threshold)
        with torch.no_grad():
            model(x, t)
        wanted = [
            next((i + 2 for i, c in enumerate(change) if c[row] < threshold), exits + 1)
            for row in range(4)
        ]
        assert model.trace.depth.tolist() == [wanted]
    with pytest.raises(
        ConfigError, match=r"Settled.threshold must be a finite number in \[0, inf\]"
    ):
        names["Settled"](-1)
    lines = code[0].strip().split("@register_policy")[1].strip().splitlines()
    assert len(lines) <= 20
