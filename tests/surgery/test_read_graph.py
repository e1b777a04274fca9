"""Who reads whom: few rows give the same graph as one row for each source."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.surgery.experiments import Subject
from exitkit.surgery.probe import probe
from exitkit.surgery.read_graph import GraphSearch, _codes, sources_of, summed
from exitkit.surgery.reads import Reads
from exitkit.surgery.trials import Trials
from tests.landing_networks import IMAGE, TOKENS, Chain, Outside, UNet, WaveNet, example


def trials_on(net: nn.Module, shape: tuple[int, ...], most: int = 16) -> Trials:
    inputs = example(shape)
    plan = ek.inspect(net, example_inputs=inputs)
    seen = probe(net, inputs)
    return Trials(
        Subject(net, seen.batch, [list(s.calls) for s in plan.stages], plan.prediction_leaf), most
    )


def graph_of(trials: Trials, chain: bool) -> Reads:
    search = GraphSearch(trials, chain)
    return search.reads(trials.run(search.first()))


def seeded(kind: type[nn.Module], *args: object, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(*args, **kwargs).eval()


@pytest.mark.parametrize("depth", [2, 5, 19, 57])
def test_no_code_is_a_part_of_another(depth: int) -> None:
    codes = [set(code) for code in _codes(depth)]
    assert len(codes) == depth
    assert not any(a <= b for a in codes for b in codes if a is not b)
    width = len(set().union(*codes))
    assert width <= 2 * math.log2(depth) + 2


def test_a_chain_takes_few_rows_and_gives_the_graph_of_many() -> None:
    few, many = (trials_on(seeded(Chain, depth=12), TOKENS) for _ in range(2))
    assert graph_of(few, chain=True).by == graph_of(many, chain=False).by
    assert few.rows < many.rows == 14  # 12 sources, the reference and the control


@pytest.mark.parametrize(
    ("net", "shape"),
    [((UNet, "cat"), IMAGE), ((UNet, "add"), IMAGE), ((WaveNet, "cat", 8), TOKENS)],
)
def test_what_is_no_chain_is_looked_at_source_by_source(net, shape) -> None:
    graphs = [graph_of(trials_on(seeded(*net), shape), chain) for chain in (True, False)]
    assert graphs[0].by == graphs[1].by


def test_skips_are_read_by_the_stage_that_joins_them() -> None:
    graph = graph_of(trials_on(seeded(UNet, "cat"), IMAGE), chain=False)
    assert {n: graph.stages_of(n) for n in range(2, 9)} == {
        2: {1}, 3: {2}, 4: {3}, 5: {3, 4}, 6: {2, 5}, 7: {1, 6}, 8: {7},
    }  # fmt: skip


def test_inner_calls_are_sources_of_their_own_and_read_by_nobody_else() -> None:
    trials = trials_on(seeded(Outside), TOKENS)
    assert set(sources_of(trials.subject)) == {
        (n, part) for n in range(1, 6) for part in ("hidden", "inner")
    }
    graph = graph_of(trials, chain=False)
    assert all(graph.of(n) == {(n - 1, "hidden")} for n in range(2, 7))


@pytest.mark.parametrize(("how", "path"), [("sum", "[1]"), ("cat", None), ("learned", None)])
def test_only_a_plain_sum_is_a_sum(how: str, path: str | None) -> None:
    net, inputs = seeded(WaveNet, how), example(TOKENS)
    seen = probe(net, inputs)
    from exitkit.surgery.hidden_path import describe_calls
    from exitkit.surgery.stages import find_stages

    flat = [i for g in find_stages(seen.base, seen.perturbed).groups for i in g.calls]
    stages = [[call] for call in describe_calls(seen, flat).values()]
    trials = Trials(Subject(net, seen.batch, stages, seen.leaves(0, "outputs")[0]), 16)
    assert summed(trials, graph_of(trials, chain=False)) == path
