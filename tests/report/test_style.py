"""The look: readable in both themes, and nothing of matplotlib is changed."""

from __future__ import annotations

import re
from pathlib import Path

from exitkit.report import curves, images, style, tradeoff


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


def test_drawing_leaves_matplotlib_alone(comparison):
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert tradeoff.tradeoff(comparison.rows) is not None
    assert dict(matplotlib.rcParams) == before
    source = "".join(Path(m.__file__).read_text() for m in (curves, tradeoff, style, images))
    assert not re.search(r"import pyplot|matplotlib\.use\(", source)
