"""The report: its table, its figures, and the promise of one page that asks nobody for anything."""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from exitkit.errors import ConfigError, MissingExtraError
from exitkit.evaluation import facts
from exitkit.evaluation.columns import NOTHING, columns
from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Interval, Ratio, Row
from exitkit.policies import StepSchedule, UncertaintyThreshold
from exitkit.report import (
    curves,
    figures,
    images,
    page,
    save_figures,
    style,
    tradeoff,
    write_report,
)

ROOT = Path(__file__).parents[2]
STEPS, SEEDS = 10, 6


def row(name, kind, family, cost, distance, **more):
    interval = Interval(distance, distance * 0.9, distance * 1.1)
    steps = round(STEPS * cost) if kind == "fewer steps" else STEPS
    return Row(
        name=name,
        kind=kind,
        family=family,
        sampler="DDIM",
        steps=steps,
        count=SEEDS,
        cost=cost,
        layers=cost,
        distance=interval,
        **more,
    )


def depths():
    chosen = torch.randint(0, 3, (STEPS, SEEDS), generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.2, 0.6, 1.0])[chosen]
    return DepthMap(tuple(torch.linspace(900, 0, STEPS).tolist()), share)


@pytest.fixture(scope="module")
def comparison():
    closer = Interval(0.6, 0.5, 0.7)
    rows = (
        row("full", "full", "", 1.0, 0.0, clock=Ratio(1, 1, 1)),
        row(
            "mine <1>",
            "policy",
            "mine",
            0.5,
            0.0131,
            clock=Ratio(0.56, 0.5, 0.6),
            against_steps=closer,
            timestep_share=0.87,
        ),
        row("mine <1>, its schedule", "mode schedule", "mine", 0.5, 0.012),
        row("other", "policy", "other", 0.48, 0.36, against_steps=Interval(16, 14, 18)),
        row("fewer steps (5)", "fewer steps", "", 0.5, 0.0224),
    )
    generator = torch.Generator().manual_seed(0)
    images = {r.name: torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1 for r in rows}
    timesteps = tuple(torch.linspace(900, 0, STEPS).tolist())
    errors = LayerErrors(timesteps, torch.rand(STEPS, 3, generator=generator), ("a", "b", "c"), 8)
    maps = UncertaintyMaps(timesteps[:4], *torch.rand(3, 4, 1, 1, 8, 8, generator=generator), "a")
    return Comparison(
        rows=rows,
        title="Half & half",
        settings={"command": "python demo.py --x '<y>'"},
        machine={"cores": "2"},
        images=images,
        depths={"mine <1>": depths(), "other": depths()},
        errors={"mine": errors},
        maps={"mine": maps},
    )


@pytest.fixture(scope="module")
def document(comparison, tmp_path_factory):
    path = write_report(comparison, tmp_path_factory.mktemp("report") / "deep" / "report.html")
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that elements close in order."""

    VOID = {"meta", "link", "img", "source", "br"}

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()


@pytest.fixture(scope="module")
def tags(document):
    reader = Reader()
    reader.feed(document)
    assert reader.open == []
    return reader.tags


def test_the_page_asks_nobody_for_anything(document, tags):
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in document and "url(" not in document


def test_every_figure_has_words_and_both_themes(document, tags):
    figures = [attributes for tag, attributes in tags if tag == "img"]
    assert len(figures) == 7
    for figure in figures:
        assert len(figure["alt"]) > 40
        assert int(figure["width"]) <= 1100 and int(figure["height"]) > 50
    sources = [attributes for tag, attributes in tags if tag == "source"]
    assert [source["media"] for source in sources] == ["(prefers-color-scheme:dark)"] * 7
    assert document.count("<figcaption>") == 7


def test_text_is_escaped(document):
    assert "Half &amp; half" in document
    assert "mine &lt;1&gt;" in document and "mine <1>" not in document
    assert "&lt;y&gt;" in document


def test_text_is_readable_in_both_themes():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in (style.LIGHT, style.DARK):
        for color in (theme.ink, theme.quiet, theme.steps, *theme.families):
            light, dark = sorted([luminance(color), luminance(theme.paper)], reverse=True)
            # WCAG AA for normal text.
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme.name, color)


def test_markdown_is_aligned_and_complete(comparison):
    lines = comparison.to_markdown().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(comparison.rows)
    assert str(comparison) == comparison.to_markdown()
    assert "0.0131 [0.0118, 0.0144]" in lines[3]
    assert "0.60 [0.50, 0.70]" in lines[3] and "87.0 %" in lines[3]
    assert lines[2].count(NOTHING) == 3, "the full run has no distance to itself"


def test_columns_without_numbers_are_left_out(comparison):
    titles = [column.title for column in columns(comparison.rows)]
    assert "Fréchet" not in titles and "confidence" not in titles and "sampler" not in titles
    two = (comparison.rows[0], Row(**{**vars(comparison.rows[1]), "sampler": "Euler"}))
    assert "sampler" in [column.title for column in columns(two)]


def test_findings_say_who_wins_also_when_a_baseline_does(comparison):
    (_, mine), (name, other) = page.findings(comparison.rows)
    assert name == "other"
    assert "closer than the same cost spent on fewer steps" in mine
    assert "static schedule is closer" in mine
    assert "farther than the same cost spent on fewer steps" in other


def test_notes_are_read_before_the_table(comparison):
    noted = Comparison(rows=comparison.rows, notes=("labels < are blind",))
    assert str(noted).endswith("note: labels < are blind")
    text = page.page(noted)
    assert text.index("labels &lt; are blind") < text.index("<table")
    assert "<aside" not in page.page(Comparison(rows=comparison.rows))


def test_json_holds_the_rows(comparison, tmp_path):
    data = json.loads(comparison.to_json(tmp_path / "a" / "rows.json").read_text())
    assert [r["name"] for r in data["rows"]] == [r.name for r in comparison.rows]
    assert data["rows"][1]["distance"] == {
        "mean": 0.0131,
        "low": 0.0131 * 0.9,
        "high": 0.0131 * 1.1,
    }
    assert data["settings"]["command"].startswith("python demo.py")
    assert data["schema"] == 1


def test_json_is_read_back_to_the_same_table(comparison, tmp_path):
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


def test_figures_are_png_files(comparison, tmp_path):
    paths = save_figures(comparison, tmp_path / "figures")
    assert [path.stem for path in paths] == [
        "tradeoff",
        "samples",
        "differences",
        "depth_by_timestep",
        "error_by_layer",
        "loss_by_timestep",
        "uncertainty_mine",
    ]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 500 and height > 100


def test_a_curve_has_one_label_and_many_step_counts_too():
    """A method at several budgets is one line, named once; so are step counts beyond a few."""
    rows = [
        row("mine at 0.7", "policy", "mine", 0.7, 0.1),
        row("mine at 0.5", "policy", "mine", 0.5, 0.2),
        row("other", "policy", "other", 0.5, 0.3),
        *(row(f"fewer steps ({n})", "fewer steps", "", n / 10, 1 / n) for n in (7, 5, 4)),
    ]
    written = {text: r.cost for r, text in tradeoff._labels(rows)}
    assert written["mine"] == 0.5 and "other" in written and "mine at 0.7" not in written
    assert sum(text.startswith("fewer steps (") for text in written) == 3
    more = [row(f"fewer steps ({n})", "fewer steps", "", n / 10, 1 / n) for n in (3, 2)]
    written = {text: r.cost for r, text in tradeoff._labels(rows + more)}
    assert written["fewer steps"] == 0.2
    assert not any(text.startswith("fewer steps (") for text in written)
    picture = tradeoff.tradeoff(rows + more)
    assert picture is not None and "mine at 0.7: 0.1 at 0.70" in picture.alt


def test_a_comparison_without_pictures_still_has_a_page(comparison):
    bare = Comparison(rows=comparison.rows)
    text = page.page(bare, figures(bare))
    assert text.count("<img") == 1, "the trade-off needs nothing but the rows"
    only_full = Comparison(rows=comparison.rows[:1])
    assert "<img" not in page.page(only_full, figures(only_full))


def test_drawing_leaves_matplotlib_alone(comparison):
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert tradeoff.tradeoff(comparison.rows) is not None
    assert dict(matplotlib.rcParams) == before
    source = "".join(Path(m.__file__).read_text() for m in (curves, tradeoff, style, images))
    assert not re.search(r"import pyplot|matplotlib\.use\(", source)


def test_a_missing_matplotlib_names_the_extra(comparison, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fresh = Comparison(rows=comparison.rows)
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[report\]"):
        write_report(fresh, tmp_path / "report.html")


def test_policies_are_told_in_one_line():
    assert facts.in_words(UncertaintyThreshold(0.05, max_age=2)) == (
        "UncertaintyThreshold(threshold=0.05, max_age=2)"
    )
    told = facts.in_words(StepSchedule(tuple(range(1, 51))))
    assert told == "StepSchedule(per_step=(1, 2, 3, 4, 5, 6, 7, 8, … 50 in all))"


def test_rows_are_found_by_name(comparison):
    assert comparison["other"].family == "other"
    with pytest.raises(KeyError, match="rows: full, mine <1>"):
        comparison["unknown"]


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
