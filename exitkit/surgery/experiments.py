"""What is changed in a row of an experiment, on what backbone, and what that moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from exitkit.surgery.example_batch import ExampleBatch
from exitkit.surgery.reads import Source
from exitkit.surgery.spec import Call, Leaf


@dataclass(frozen=True)
class Experiment:
    """What is changed in one row.

    Attributes:
        sources: Outputs that are changed, each with the weight of its change.
        alike: Whether all of them are changed by the same noise, and not by noise of their own.
        base: Instead of outputs: the hidden state that entered so many calls before the last call,
            while the calls from there on give what they gave.
        scale: With `base`: that hidden state stays, and the last call's output gets the change of the
            row that has it changed, divided by this.
    """

    sources: Mapping[Source, float] = field(default_factory=dict)
    alike: bool = False
    base: int | None = None
    scale: float | None = None


@dataclass
class Finding:
    """What an experiment has moved.

    Attributes:
        readers: Stages in front of which its row differs from row 0; N + 1 for the prediction.
        behind: Whether its row differs in front of some module behind the last stage.
        prediction: The prediction of its row.
        arrived: By what its row of the first tensor in front of a module behind the last stage differs
            from row 0's, or None.
    """

    readers: set[int] = field(default_factory=set)
    behind: bool = False
    prediction: Tensor | None = None
    arrived: Tensor | None = None


@dataclass(frozen=True)
class Subject:
    """What is experimented on.

    Attributes:
        model: The backbone, in eval mode; what it leaves behind is the caller's to restore.
        batch: The example.
        stages: The calls of each stage, in order.
        prediction: The prediction among the outputs.
        handed_on: Outputs that are an argument as it came in, as (module, number of the call, path):
            a skipped call gives them too.
    """

    model: nn.Module
    batch: ExampleBatch
    stages: Sequence[Sequence[Call]]
    prediction: Leaf
    handed_on: frozenset[tuple[str, int, str]] = frozenset()

    @property
    def depth(self) -> int:
        """Number of stages N."""
        return len(self.stages)

    @property
    def calls(self) -> list[Call]:
        """The calls of all stages, in order."""
        return [call for calls in self.stages for call in calls]

    def changeable(self, call: Call, leaf: Leaf) -> bool:
        """Whether an output of a call is one that rows lose which do not run it.

        It need not depend on the noisy input: blocks work on conditions, too.
        """
        if leaf.axis is None or "float" not in leaf.dtype or leaf.listed:
            return False
        return (call.path, call.nth, leaf.path) not in self.handed_on
