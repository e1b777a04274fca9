"""The table of diffusers' own tests names what passes bare alone."""

from __future__ import annotations

from typing import Any

from benchmarks.mixins import Compared, page


def outcome(result: str, ran: int = 1, early: int = 0, message: str = "") -> dict[str, Any]:
    return {"result": result, "ran": ran, "early": early, "message": message, "bare": []}


def test_what_passes_bare_alone_is_named() -> None:
    bare = {f"file.py::Net::test_{x}": outcome("passed", 0) for x in ("a", "b", "c")}
    bare["file.py::Net::test_hub"] = outcome("failed", 0)
    wrapped = {name: outcome(of["result"]) for name, of in bare.items()}
    same = Compared("Net", bare, wrapped)
    assert not same.lost and not same.won and "| Net | 4 | 3 | 3 | 3 | 0 |" in page([same], "1.0")
    assert "Not run: UNet2DModel, " in page([same], "1.0")
    assert page([same], "1.0").count("None.") == 3
    wrapped["file.py::Net::test_b"] = outcome("failed", message="another number")
    other = Compared("Net", bare, wrapped)
    assert other.lost == ["file.py::Net::test_b"]
    assert "- `Net::test_b`: another number" in page([other], "1.0")
    wrapped["file.py::Net::test_a"] = {**outcome("passed", 0), "bare": ["on the device meta"]}
    assert "- `Net::test_a`: on the device meta" in page([other], "1.0")
