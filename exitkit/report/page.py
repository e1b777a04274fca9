"""The page: one HTML file with its style and its images inside, and nothing to run or to fetch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Row
from exitkit.report.style import DARK, LIGHT, Picture, Theme, family_order
from exitkit.report.table import table_html, table_legend

CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.15;margin:0 0 .6rem;letter-spacing:-.015em}
h2{font-size:1.15rem;margin:0 0 .8rem;letter-spacing:-.005em}
p{margin:.4rem 0}
.lead{font-size:1.08rem;max-width:70ch}
.lead li{margin:.25rem 0}
.quiet,figcaption,.legend,footer{color:var(--quiet)}
section{background:var(--paper);border:1px solid var(--rule);border-radius:12px;
padding:1.25rem 1.4rem 1.3rem;margin:1.4rem 0}
figure{margin:0}
figure img{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption{font-size:.88rem;max-width:78ch;margin-top:.9rem}
aside{border-left:4px solid var(--f1);background:var(--paper);border-radius:0 8px 8px 0;
padding:.5rem 1.1rem;margin:1.2rem 0 0;max-width:86ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .5rem;text-align:right;white-space:nowrap;vertical-align:middle;
border-bottom:1px solid var(--rule)}
thead th{color:var(--quiet);font-weight:600;border-bottom:2px solid var(--rule);
cursor:help;white-space:normal;vertical-align:bottom;line-height:1.2}
th:first-child{text-align:left;padding-left:0}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
tr.policy th,tr.full th{font-weight:700}
.ci{display:block;color:var(--quiet);font-size:.8em;line-height:1.1}
.bar{display:inline-block;min-width:4.6rem;padding:0 .3rem;border-radius:3px;
background:linear-gradient(90deg,var(--fill) var(--w),transparent var(--w))}
.mark{display:inline-block;width:.62rem;height:.62rem;margin-right:.55rem;
border:2px solid var(--c);background:var(--c)}
.disc{border-radius:50%}
.square,.diamond{background:transparent}
.diamond{transform:rotate(45deg) scale(.85)}
.triangle{border:0;background:var(--c);clip-path:polygon(50% 0,100% 100%,0 100%)}
.cross{border:0;background:var(--c);clip-path:polygon(33% 0,67% 0,67% 33%,100% 33%,100% 67%,
67% 67%,67% 100%,33% 100%,33% 67%,0 67%,0 33%,33% 33%)}
.pentagon{border:0;background:var(--c);clip-path:polygon(50% 0,100% 38%,81% 100%,19% 100%,0 38%)}
.legend{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:.35rem 1.6rem;
font-size:.82rem;margin:1.1rem 0 0}
.legend div{display:grid;grid-template-columns:6.4rem 1fr;gap:.6rem}
dt{font-weight:600;color:var(--ink)}dd{margin:0}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;margin:0;
font-size:.88rem}
.facts dd{overflow-wrap:anywhere}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
@media print{section{break-inside:avoid;border:0;padding:0}}
"""


def page(comparison: Comparison, figures: Sequence[Picture] = ()) -> str:
    """Renders a comparison.

    Arguments:
        comparison: The comparison.
        figures: Its figures, in order.

    Returns:
        A complete HTML document.
    """
    rows = comparison.rows
    variables = {"": "--steps"}
    variables |= {name: f"--f{i % 6}" for i, name in enumerate(family_order(rows))}
    style = f":root{{color-scheme:light dark;{_palette(LIGHT)}}}"
    style += f"@media(prefers-color-scheme:dark){{:root{{{_palette(DARK)}}}}}{CSS}"
    sections = [
        "<section><h2>All rivals</h2>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of all rivals">'
        f"{table_html(rows, variables)}</div>{table_legend(rows)}</section>",
        *(_figure(picture) for picture in figures),
        _facts("How this was made", {**comparison.settings}),
        _facts("On this machine only", {**comparison.machine}),
    ]
    lead = "".join(
        f"<li><strong>{escape(name)}</strong> {escape(text)}</li>" for name, text in findings(rows)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in comparison.notes)
    aside = f'<aside aria-label="Read this first">{notes}</aside>' if notes else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # An empty icon keeps browsers from asking a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(comparison.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<main>\n<header><h1>{escape(comparison.title)}</h1>"
        f'<ul class="lead">{lead}</ul>{aside}</header>\n'
        + "\n".join(sections)
        + "\n<footer><p>Written by exitkit.</p></footer>\n</main>\n</body>\n</html>\n"
    )


def findings(rows: tuple[Row, ...]) -> list[tuple[str, str]]:
    """What the table says, in words: also where a baseline wins.

    Arguments:
        rows: The rows.

    Returns:
        Name of each policy, and the rest of a sentence that begins with it.
    """
    sentences = []
    for row in rows:
        if row.kind != "policy":
            continue
        text = f"runs {row.cost:.0%} of the multiply-adds"
        if row.clock is not None:
            text += f" in {row.clock.median:.0%} of the time"
        if row.accuracy is not None:
            sentences.append((row.name, f"{text} and {_right(row)}."))
            continue
        text += f" and ends {row.distance.mean:.3g} from the full run"
        versus = row.against_steps
        if versus is not None:
            bounds = f"{versus.low:.2f} to {versus.high:.2f}"
            if versus.high < 1:
                verdict = "closer than the same cost spent on fewer steps"
            elif versus.low > 1:
                verdict = "farther than the same cost spent on fewer steps"
            else:
                verdict = "level with the same cost spent on fewer steps"
            text += f": {verdict} ({versus.mean:.2g} times as far, {bounds})"
        sentences.append((row.name, f"{text}.{_static(row, rows)}"))
    return sentences


def _right(row: Row) -> str:
    """What a policy's accuracy is worth beside the full model and one exit for all."""
    assert row.accuracy is not None
    text = f"is right on {row.accuracy.mean:.1%} of the images"
    known = (
        ("the full model", row.against_full),
        ("the fixed exit of its cost", row.against_fixed),
    )
    for whom, gap in known:
        if gap is not None:
            bounds = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
            text += f", {100 * gap.mean:+.1f} points against {whom} ({bounds})"
    return text


def _static(row: Row, rows: tuple[Row, ...]) -> str:
    for other in rows:
        if other.kind == "mode schedule" and other.name.startswith(f"{row.name}, "):
            mean = other.distance.mean
            word = "no closer" if mean >= row.distance.mean else "closer"
            return f" Its own static schedule is {word} ({mean:.3g} at {other.cost:.0%})."
    return ""


def _palette(theme: Theme) -> str:
    names = {
        "page": "#f5f7f9" if theme.name == "light" else "#0f1319",
        "paper": theme.paper,
        "ink": theme.ink,
        "quiet": theme.quiet,
        "rule": theme.rule,
        "steps": theme.steps,
        "fill": theme.low,
        **{f"f{i}": tint for i, tint in enumerate(theme.families)},
    }
    return "".join(f"--{name}:{value};" for name, value in names.items())


def _figure(picture: Picture) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(png).decode()
        for png in (picture.light, picture.dark)
    )
    return (
        f"<section><h2>{escape(picture.title)}</h2><figure><picture>"
        f'<source media="(prefers-color-scheme:dark)" srcset="{dark}">'
        f'<img src="{light}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(picture.alt, quote=True)}"></picture>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure></section>"
    )


def _facts(title: str, facts: dict[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()
    )
    return f'<section><h2>{escape(title)}</h2><dl class="facts">{items}</dl></section>'
