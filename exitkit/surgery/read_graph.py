"""Finds who reads whom by experiments: few rows where the stages are a chain, one a source elsewhere.

A chain is recognised in about log2 N rows: every stage is given a set of rows in which all of its outputs
are changed, no set within another (Sperner), so a stage in front of which exactly the rows of its
predecessor differ reads its predecessor alone.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from exitkit.surgery.experiments import Experiment, Finding, Subject
from exitkit.surgery.reads import Reads, Source
from exitkit.surgery.row_views import differing
from exitkit.surgery.spec import Call
from exitkit.surgery.trials import Trials

_SIGNS = 3  # rows with random signs: as many chances to see that the tail reads more than the sum


def sources_of(subject: Subject) -> list[Source]:
    """The parts of what the stages give that can be changed."""
    found: list[Source] = []
    may = subject.changeable
    for n, (*inner, end) in enumerate(subject.stages, 1):
        found.append((n, "hidden"))
        if any(may(end, leaf) for leaf in end.outputs if leaf.path != end.hidden_out):
            found.append((n, "rest"))
        if any(may(call, leaf) for call in inner for leaf in call.outputs):
            found.append((n, "inner"))
    return found


def single(source: Source) -> Experiment:
    """The experiment in which one part alone is changed."""
    return Experiment({source: 1.0})


class GraphSearch:
    """Finds the reads of one backbone.

    Arguments:
        trials: Runs experiments.
        chain: Whether the stages look like a chain: then that is tried first.
    """

    def __init__(self, trials: Trials, chain: bool) -> None:
        self._trials, self._subject = trials, trials.subject
        self.sources = sources_of(self._subject)
        self._parts = [s for s in self.sources if s[0] == self._subject.depth]
        self._codes = _codes(self._subject.depth)
        self._width = len(set(itertools.chain(*self._codes)))
        self._screens = chain
        self._screens = chain and len(self.first()) < len(self.sources)
        self.singles: dict[Source, Finding] = {}

    def first(self) -> list[Experiment]:
        """The experiments to begin with."""
        if not self._screens:
            return [single(source) for source in self.sources]
        return [*map(single, self._parts), *self._screening()]

    def _screening(self) -> list[Experiment]:
        """Rows for what the last calls give, then for what inner calls give, if there are any."""
        inner = [s for s in self.sources if s[1] == "inner"]
        outer = [s for s in self.sources if s[1] != "inner"]
        return [
            Experiment({s: 1.0 for s in group if row in self._codes[s[0] - 1]})
            for group in ([outer, inner] if inner else [outer])
            for row in range(self._width)
        ]

    def reads(self, findings: Sequence[Finding]) -> Reads:
        """The graph.

        Arguments:
            findings: What the experiments of `first` have moved.

        Raises:
            Undecided: If further experiments fail.
        """
        if not self._screens:
            self.singles = dict(zip(self.sources, findings, strict=True))
            return self._direct()
        self.singles = dict(zip(self._parts, findings, strict=False))
        graph = self._chain(findings[len(self._parts) :])
        if graph is not None:
            return graph
        missing = [s for s in self.sources if s not in self.singles]
        found = self._trials.run([single(source) for source in missing])
        self.singles |= dict(zip(missing, found, strict=True))
        return self._direct()

    def _chain(self, screened: Sequence[Finding]) -> Reads | None:
        """The graph, if every stage reads its predecessor alone."""
        depth = self._subject.depth
        silent = not any(depth + 1 in f.readers for f in (*screened, *self.singles.values()))
        graph = Reads(depth)
        outer, inner = screened[: self._width], screened[self._width :]
        for reader in range(2, depth + 2):
            at_end = reader == depth + 1
            from_outer, from_inner = (
                {
                    i
                    for i, f in enumerate(part)
                    if (f.behind if at_end and silent else reader in f.readers)
                }
                for part in (outer, inner)
            )
            # What its own inner calls give a stage reads itself.
            own = set() if at_end else set(self._codes[reader - 1])
            if from_outer != set(self._codes[reader - 2]) or from_inner - own:
                return None
            graph.add(reader, [s for s in self.sources if s[0] == reader - 1 and not at_end])
        graph.add(depth + 1, self._of_the_end(silent))
        return graph

    def _of_the_end(self, silent: bool) -> list[Source]:
        end = self._subject.depth + 1
        return [s for s, f in self.singles.items() if (f.behind if silent else end in f.readers)]

    def _direct(self) -> Reads:
        depth = self._subject.depth
        graph = Reads(depth)
        for source, finding in self.singles.items():
            for reader in finding.readers - {depth + 1}:
                graph.add(reader, [source])
        silent = not any(depth + 1 in f.readers for f in self.singles.values())
        graph.add(depth + 1, self._of_the_end(silent))
        return graph


def summed(trials: Trials, reads: Reads) -> str | None:
    """The output by which all stages add up to what the tail reads, if they do.

    The tail of a WaveNet reads the sum of what every layer puts aside, and the hidden state at the end
    is read by nobody. Then changes of which the signs add up to one move the prediction alike,
    whatever stages they are at.

    Arguments:
        trials: Runs experiments.
        reads: The reads found so far.

    Returns:
        The path of that output in every stage's call, or None.
    """
    subject = trials.subject
    depth = subject.depth
    rest: list[Source] = [(n, "rest") for n in range(1, depth + 1)]
    wanted = set(rest)
    if reads.of(depth + 1) != wanted or depth < 3 or not trials.batched:
        return None
    if any(reads.of(n) != {(n - 1, "hidden")} for n in range(2, depth + 1)):
        return None
    paths = {
        tuple(
            x.path for x in end.outputs if subject.changeable(end, x) and x.path != end.hidden_out
        )
        for *_, end in subject.stages
    }
    if any(len(calls) > 1 for calls in subject.stages) or len(paths) > 1:
        return None
    path, *further = next(iter(paths))
    shapes = {x.shape for calls in subject.stages for x in calls[-1].outputs if x.path == path}
    if further or len(shapes) > 1:
        return None
    draw = random.Random(0)
    rows = [Experiment({rest[-1]: 1.0}, alike=True)]
    for _ in range(_SIGNS):
        signs = [draw.choice((-1.0, 1.0)) for _ in rest[1:]]
        rows.append(
            Experiment(
                {rest[0]: 1.0 - sum(signs), **dict(zip(rest[1:], signs, strict=True))}, alike=True
            )
        )
    first, *others = trials.run(rows)
    alike = all(same_prediction(first, other) for other in others)
    return path if depth + 1 in first.readers and alike else None


def with_sums(stages: Sequence[Sequence[Call]], path: str) -> tuple[list[list[Call]], Reads]:
    """Stages whose hidden state is the running sum of an output, and what reads it."""
    changed = [
        [replace(call, hidden_out=path, base=None, scale=1.0, summed=True) for call in calls]
        for calls in stages
    ]
    reads = Reads(len(stages))
    for n in range(1, len(stages)):
        reads.add(n + 1, [(n, "rest")])
    reads.add(len(stages) + 1, [(len(stages), "hidden")])
    return changed, reads


def same_prediction(first: Finding, second: Finding) -> bool:
    """Whether two experiments have moved the prediction alike."""
    if first.prediction is None or second.prediction is None:
        return False
    return not bool(differing(torch.stack([first.prediction, second.prediction]))[1])


def _codes(depth: int) -> list[tuple[int, ...]]:
    """For each stage the rows in which it is changed, none a part of another's."""
    width = next(w for w in itertools.count(1) if math.comb(w, w // 2) >= depth)
    return list(itertools.islice(itertools.combinations(range(width), width // 2), depth))
