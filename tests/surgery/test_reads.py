"""Where rows may go on, on graphs drawn by hand."""

from __future__ import annotations

from exitkit.surgery.reads import Reads


def chain(depth: int) -> Reads:
    graph = Reads(depth)
    for reader in range(2, depth + 2):
        graph.add(reader, [(reader - 1, "hidden")])
    return graph


def unet() -> Reads:
    """Two levels down, a middle, two levels up, each of which takes the rest of its level."""
    graph = chain(5)
    graph.add(4, [(2, "rest")])
    graph.add(5, [(1, "rest")])
    return graph


def test_a_chain_goes_on_at_its_end_from_everywhere() -> None:
    graph = chain(4)
    assert all(graph.resumes(k, 4) for k in range(1, 4))
    assert [graph.mirror(k) for k in range(1, 4)] == [None] * 3
    assert graph.moving() == {(n, "hidden") for n in range(1, 5)}


def test_a_level_is_mirrored_where_its_skips_are_taken() -> None:
    graph = unet()
    assert [graph.mirror(k) for k in range(1, 5)] == [5, 4, 5, None]
    assert graph.missing(1, 3) == {4: {2}}  # the skips of stage 2, which was passed over
    assert graph.resumes(1, 5) and not graph.resumes(1, 3)


def test_what_stands_beside_the_landed_state_is_missing() -> None:
    graph = chain(3)
    graph.add(4, [(3, "rest")])
    assert graph.missing(1, 3) == {4: {3}} and not graph.resumes(1, 3)
    graph = chain(3)
    graph.add(4, [(3, "inner")])
    assert not graph.resumes(1, 3)


def test_a_state_that_nobody_reads_is_no_place_to_land() -> None:
    graph = Reads(3)
    graph.add(2, [(1, "hidden")])
    graph.add(3, [(2, "hidden")])
    graph.add(4, [(n, "rest") for n in (1, 2, 3)])
    assert (3, "hidden") not in graph.moving() and (2, "hidden") in graph.moving()
    assert not any(graph.resumes(k, 3) for k in (1, 2))
