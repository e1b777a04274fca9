"""What experiments establish about the stages of a backbone: their last call, and who reads whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from exitkit.surgery import residuals
from exitkit.surgery.dry_run import moved
from exitkit.surgery.experiments import Subject
from exitkit.surgery.independence import ROWS
from exitkit.surgery.probe import Probe
from exitkit.surgery.read_graph import GraphSearch, summed, with_sums
from exitkit.surgery.reads import Reads
from exitkit.surgery.spec import Call, Leaf
from exitkit.surgery.trials import Trials, Undecided, rows_at_once

_ATTEMPTS = 4  # what follows a wrong idea of the last call is read off a wrong hidden state
_UNCLEAR = "who reads whom could not be established"


@dataclass(frozen=True)
class Evidence:
    """What experiments have shown.

    Attributes:
        stages: The calls of each stage, the last with what its output is added to.
        reads: Who reads whom; None where that could not be established.
        view: In words.
    """

    stages: list[list[Call]]
    reads: Reads | None
    view: str


def gather(
    model: nn.Module, seen: Probe, stages: Sequence[Sequence[Call]], prediction: Leaf
) -> Evidence:
    """Experiments on a backbone.

    Arguments:
        model: The backbone; its state is restored behind every forward.
        seen: Its dry runs.
        stages: The calls of each stage, in order.
        prediction: The prediction among its outputs.

    Returns:
        What was found.
    """
    now = [list(calls) for calls in stages]
    given = seen.batch.batch
    most = rows_at_once(model, seen.base.calls, ROWS if seen.batch.batched else 1, given)
    forwards = rows = 0
    further: list[residuals.Base] = []
    for _ in range(_ATTEMPTS):
        trials = Trials(Subject(model, seen.batch, now, prediction, _handed_on(seen)), most)
        try:
            found = _once(trials, further, _looks_like_a_chain(seen, now))
            reads = found.reads
            path = None if reads is None else summed(trials, reads)
        except Undecided as error:
            return Evidence(now, None, f"{_UNCLEAR}: {error}")
        finally:
            forwards, rows = forwards + trials.forwards, rows + trials.rows
        if path is not None:
            now, reads = with_sums(now, path)
        if reads is not None:
            return Evidence(now, reads, f"{rows} rows in {forwards} forwards tell who reads whom")
        further = found.further
        if not further:
            end = residuals.with_base(now[-1][-1], found.base)
            now = [*now[:-1], [*now[-1][:-1], end]]
    return Evidence(
        now, None, f"{_UNCLEAR}: what its last call is added to depends on what it gives"
    )


@dataclass(frozen=True)
class _Round:
    """One set of experiments.

    Attributes:
        base: What the output of the last call is added to.
        reads: The graph; None where it was read with another idea of the last call.
        further: What else the output may be added to, to be tested next.
    """

    base: residuals.Base | None
    reads: Reads | None
    further: list[residuals.Base]


def _once(trials: Trials, further: Sequence[residuals.Base], chain: bool) -> _Round:
    calls = trials.subject.calls
    end = calls[-1]
    before = None if end.base is None else (end.base, end.scale)
    bases = residuals.hypotheses(calls, further) if trials.batched else []
    pairs = residuals.experiments(bases)
    search = GraphSearch(trials, chain)
    findings = trials.run([*pairs, *search.first()])
    known = residuals.judged(bases, findings[: len(pairs)], trials.subject.depth + 1)
    if bases and known is not None:
        base, new = known
        if base is None and new and not set(new) <= set(further):
            return _Round(None, None, new)
        if base != before:
            return _Round(base, None, [])
    return _Round(before, search.reads(findings[len(pairs) :]), [])


def _looks_like_a_chain(seen: Probe, stages: Sequence[Sequence[Call]]) -> bool:
    """Whether nothing in the dry run shows that a stage reads more than its predecessor."""
    shapes = []
    made: dict[int, int] = {}
    for n, calls in enumerate(stages, 1):
        for call in calls:
            record = next(c for c in seen.base.calls if (c.path, c.nth) == (call.path, call.nth))
            if any(made.get(leaf.token, n) < n - 1 for leaf in record.inputs.values()):
                return False
            made |= {leaf.token: n for leaf in record.outputs.values()}
        first, last = calls[0], calls[-1]
        shapes += [x.shape for x in first.inputs if x.path == first.hidden_in]
        shapes += [x.shape for x in last.outputs if x.path == last.hidden_out]
    return len(set(shapes)) <= 2


def _handed_on(seen: Probe) -> frozenset[tuple[str, int, str]]:
    """Outputs that are an argument as it came in: the same tensor with the same values."""
    found = set()
    for call in seen.base.calls:
        given = {leaf.token: leaf for leaf in call.inputs.values()}
        for path, leaf in call.outputs.items():
            before = given.get(leaf.token)
            if before is not None and not moved(before, leaf):
                found.add((call.path, call.nth, path))
    return frozenset(found)
