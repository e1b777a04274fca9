"""Where rows go on behind each stage, from a graph drawn by hand; the reason where they do not."""

from __future__ import annotations

import pytest
from torch import nn

from exitkit.surgery.boundaries import find_boundaries
from exitkit.surgery.evidence import Evidence
from exitkit.surgery.reads import Reads
from exitkit.surgery.spec import Boundary, Call, Leaf, Stage
from tests.surgery.test_reads import chain, unet

TOKENS = (2, 6, 8)


def stages(*shapes: tuple[int, ...]) -> tuple[Stage, ...]:
    made = []
    for n, shape in enumerate(shapes, 1):
        leaf = Leaf("", shape, "float32", 0, moved=True)
        call = Call(f"blocks.{n - 1}", 0, (), (leaf,), "x", "", ())
        made.append(Stage(n, f"blocks.{n - 1}", "Block", (call,), 10.0))
    return tuple(made)


def found(made: tuple[Stage, ...], reads: Reads | None, view: str = "") -> tuple[Boundary, ...]:
    modules = [nn.Linear(8, 8) for _ in made]
    return find_boundaries(made, modules, 60.0, Evidence([], reads, view), {})


def test_a_chain_of_one_shape_lands_at_its_end() -> None:
    out = found(stages(*[TOKENS] * 4), chain(4))
    assert [(b.lands, b.completes, b.mirror, b.resume) for b in out] == [(True, True, None, 4)] * 4
    assert [b.usable for b in out] == [True] * 3 + [False]
    assert [b.share for b in out] == pytest.approx([(20 + 10 * n) / 60 for n in range(1, 5)])


def test_a_unet_goes_on_at_the_partner_and_lands_nowhere() -> None:
    out = found(stages(TOKENS, (2, 3, 8), (2, 3, 8), (2, 3, 8), TOKENS), unet())
    assert [b.resume for b in out] == [4, 3, 4, 5, 5]
    # The first level fits the end by its shape alone.
    assert [b.lands for b in out] == [False] * 4 + [True]


def test_what_the_tail_reads_beside_the_end_is_named() -> None:
    graph = chain(4)
    graph.add(5, [(3, "rest"), (2, "hidden")])
    out = found(stages(*[TOKENS] * 4), graph)
    assert [b.resume for b in out] == [None, None, 4, 4]
    assert "the tail reads what stages 2, 3 gave beside" in out[0].no_resume
    assert "the tail reads what stage 3 gave beside" in out[1].no_resume
    assert [b.lands for b in out] == [False, False, True, True]


def test_an_end_that_nobody_reads_is_named() -> None:
    graph = Reads(3)
    graph.add(4, [(n, "rest") for n in (1, 2, 3)])
    (first, *_) = found(stages(*[TOKENS] * 3), graph)
    assert (
        not first.lands and "does not move with the hidden state behind stage 3" in first.no_resume
    )


def test_without_a_graph_the_form_decides_for_the_tail_and_nothing_resumes() -> None:
    out = found(stages(*[TOKENS] * 3), None, "it draws numbers")
    assert all(b.lands and b.resume is None and b.no_resume == "it draws numbers" for b in out)
