"""Comparisons as data: rows by name, and files that are read back."""

from __future__ import annotations

import json

import pytest

from exitkit.errors import ConfigError
from exitkit.evaluation.results import Comparison
from exitkit.report import figures
from tests.report import results


def test_json_holds_the_rows(tmp_path):
    comparison = results.comparison()
    data = json.loads(comparison.to_json(tmp_path / "a" / "rows.json").read_text())
    assert [r["name"] for r in data["rows"]] == [r.name for r in comparison.rows]
    assert data["rows"][1]["distance"] == {
        "mean": 0.0131,
        "low": 0.0131 * 0.9,
        "high": 0.0131 * 1.1,
    }
    assert data["settings"]["command"].startswith("python demo.py")
    assert data["schema"] == 1


def test_json_is_read_back_to_the_same_table(tmp_path):
    comparison = results.comparison()
    path = comparison.to_json(tmp_path / "rows.json")
    back = Comparison.from_json(path)
    assert back.rows == comparison.rows and back.notes == comparison.notes
    assert (back.title, back.settings, back.machine) == (
        comparison.title,
        comparison.settings,
        comparison.machine,
    )
    assert str(back) == str(comparison)
    assert [f.name for f in figures(back)] == ["tradeoff"], "samples are not in the file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON file"),
        ("[]", "found schema None"),
        ('{"schema": 2}', "expected a comparison of schema 1, found schema 2"),
        ('{"schema": 1}', "does not follow it: KeyError"),
        (
            '{"schema": 1, "rows": [{"nome": 1}], "title": "", "notes": [], "settings": {}, '
            '"machine": {}}',
            "does not follow it: TypeError",
        ),
    ],
)
def test_other_json_is_refused(text, said, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Comparison.from_json(path)


def test_rows_are_found_by_name():
    comparison = results.comparison()
    assert comparison["other"].family == "other"
    with pytest.raises(KeyError, match="rows: full, mine <1>"):
        comparison["unknown"]
