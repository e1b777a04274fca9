"""Runs experiments in forwards of bounded size, changing outputs in the ways that a backbone bears."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exitkit.surgery.coded_forward import CodedForward
from exitkit.surgery.dry_run import CallRecord, LeafRecord, undisturbed
from exitkit.surgery.example_batch import CHANGES, Change
from exitkit.surgery.experiments import Experiment, Finding, Subject
from exitkit.surgery.row_views import Place

_FEWEST, _MOST = 4, 16  # rows of a forward: the dry runs have three; more than 16 save little time
_SMALL = 64 * 2**20  # bytes of activations that are no concern
_SHARE = 0.1  # of the weights' bytes that further rows may take


class Undecided(Exception):
    """No experiment can be made on a backbone; the message says why."""


def rows_at_once(model: nn.Module, calls: Sequence[CallRecord], rows: int, given: int) -> int:
    """How many rows a forward of experiments may have.

    As many as the example has, and as fit into a tenth of the weights beside the three rows of the dry
    runs: what a forward keeps alive is guessed from the largest call.

    Arguments:
        model: The backbone.
        calls: Its dry run.
        rows: Rows of that run.
        given: Rows of the example.

    Returns:
        The number of rows.
    """

    def size(leaves: dict[str, LeafRecord]) -> int:
        return sum(torch.Size(x.shape).numel() * x.dtype.itemsize for x in leaves.values())

    row = 2 * max(size(call.inputs) + size(call.outputs) for call in calls) / rows
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    able = max(given, 3 + _SHARE * weights / row, _SMALL / row)
    return int(min(max(able, _FEWEST), _MOST))


class Trials:
    """Runs experiments on one backbone.

    Arguments:
        subject: What is experimented on.
        most: Rows of one forward at most.

    Attributes:
        forwards: Forwards run so far.
        rows: Rows run so far.
    """

    def __init__(self, subject: Subject, most: int) -> None:
        self.subject, self._most = subject, most
        self.forwards = self.rows = 0
        self._change: Change | None = None

    @property
    def batched(self) -> bool:
        """Whether a forward holds several experiments."""
        return self.subject.batch.batched

    def run(self, experiments: Sequence[Experiment]) -> list[Finding]:
        """Runs experiments.

        Arguments:
            experiments: The experiments; those that look at one base stay in one forward.

        Returns:
            What each has moved.

        Raises:
            Undecided: If the backbone draws numbers, or runs with no kind of change.
        """
        if not self.batched:
            return self._one_by_one(experiments)
        findings: list[Finding] = []
        rest = list(experiments)
        while rest:
            control = self._change is None
            room = self._most - 1 - control
            together = sum(e.base is not None for e in rest)
            part, rest = rest[: max(room, together)], rest[max(room, together) :]
            findings += self._forward(part, control)
        return findings

    def _forward(self, part: Sequence[Experiment], control: bool) -> list[Finding]:
        ways = CHANGES if self.subject.batch.batch > 1 else CHANGES[:2]
        reasons = []
        for change in [self._change] if self._change else ways:
            coded = CodedForward(self.subject, part, change, control)
            try:
                with undisturbed(self.subject.model):
                    coded.run()
            except Exception as error:  # third-party code meets values that it was not made for
                reasons.append(f"{change}: {type(error).__name__}: {error}"[:120])
                continue
            finally:
                self.forwards, self.rows = self.forwards + 1, self.rows + len(part) + 1 + control
            if coded.draws:
                raise Undecided(
                    "equal rows of one batch differ: the forward draws numbers of its own"
                )
            self._change = change
            return coded.findings
        raise Undecided(f"it does not run with changed hidden states ({'; '.join(reasons)})")

    def _one_by_one(self, experiments: Sequence[Experiment]) -> list[Finding]:
        reference: dict[Place, Tensor] = {}
        findings: list[Finding] = []
        for part, control in [([], False), ([], True), *(([e], False) for e in experiments)]:
            coded = CodedForward(self.subject, part, "noise", control, reference)
            try:
                with undisturbed(self.subject.model):
                    coded.run()
            except Exception as error:  # as above
                reason = f"{type(error).__name__}: {error}"[:120]
                raise Undecided(f"it does not run with changed hidden states ({reason})") from error
            finally:
                self.forwards, self.rows = self.forwards + 1, self.rows + 1
            if coded.draws:
                raise Undecided("two equal calls differ: the forward draws numbers of its own")
            findings += coded.findings
        return findings
