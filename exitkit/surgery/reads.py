"""What each stage reads directly, and where a row may go on that passed over some of them.

A stage *reads* another one if a change of what that one gave reaches it past all stages between, by
whatever way: concatenated, added, sliced, scaled, in a list. Parts of what a stage gives are told apart:
the `hidden` state at its end, the `rest` of what its last call gave, and what its `inner` calls gave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["hidden", "rest", "inner"]
Source = tuple[int, Part]
"""A part of what a stage gave, by the number of the stage."""


@dataclass
class Reads:
    """The graph of direct reads of a backbone of N stages.

    Attributes:
        depth: Number of stages N.
        by: What each stage reads; N + 1 is the prediction.
    """

    depth: int
    by: dict[int, set[Source]] = field(default_factory=dict)

    def add(self, reader: int, sources: Iterable[Source]) -> None:
        """Notes what a stage reads."""
        self.by.setdefault(reader, set()).update(sources)

    def of(self, reader: int) -> set[Source]:
        """What a stage reads."""
        return self.by.get(reader, set())

    def stages_of(self, reader: int) -> set[int]:
        """The stages of which a stage reads something."""
        return {stage for stage, _ in self.of(reader)}

    def moving(self) -> set[Source]:
        """All parts whose change reaches the prediction, directly or through later stages."""
        found: set[Source] = set()
        ahead = [self.depth + 1]
        while ahead:
            for source in self.of(ahead.pop()) - found:
                found.add(source)
                ahead.append(source[0])
        return found

    def missing(self, exit_at: int, landing: int) -> dict[int, set[int]]:
        """What is read behind a landing of stages that were passed over.

        Arguments:
            exit_at: Stage behind which a row left.
            landing: Stage behind which its hidden state is put.

        Returns:
            Passed-over stages by the stage that reads them past the landed hidden state.
        """
        found: dict[int, set[int]] = {}
        for reader in range(landing + 1, self.depth + 2):
            stages = {
                stage
                for stage, part in self.of(reader)
                if exit_at < stage < landing or (stage == landing and part != "hidden")
            }
            if stages:
                found[reader] = stages
        return found

    def resumes(self, exit_at: int, landing: int) -> bool:
        """Whether a row that left behind one stage can go on behind another with its hidden state."""
        return (landing, "hidden") in self.moving() and not self.missing(exit_at, landing)

    def mirror(self, exit_at: int) -> int | None:
        """The first stage that resumes with fresh skips of what a row has run, or None.

        Arguments:
            exit_at: Stage behind which a row left.
        """
        for stage in range(exit_at + 2, self.depth + 1):
            fresh = any(source <= exit_at for source in self.stages_of(stage))
            if fresh and self.resumes(exit_at, stage - 1):
                return stage
        return None
