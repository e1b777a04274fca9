"""What a sampler returns, and what may look on or reach in while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from exitkit.execution.trace import Trace

Edit = Callable[[int, Tensor, Tensor], Tensor]
"""Changes what a backbone predicts, in every branch of guidance: for measurements.

It gets the number of the step within the trajectory, the seeds of the rows, with shape (B,), and the
prediction, with shape (B, ...). A second-order solver evaluates twice within one step.
"""


class Record(Protocol):
    """Runs the full model in place of the sampler's own calls, and keeps what it sees."""

    def start(self, seeds: Tensor) -> None:
        """A batch begins; its seeds have shape (B,)."""

    def next_call(self) -> None:
        """The calls that follow are branches of one further evaluation."""

    def call(
        self,
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        through: Callable[..., Any] | None = None,
    ) -> Any:
        """Runs the full model and returns its output; through its own forward where hooks have fired."""


@dataclass(frozen=True)
class Sample:
    """Samples by seed.

    Attributes:
        samples: Final states on the CPU, with shape (n, *shape), in the order of the seeds.
        seeds: Seed of each sample.
        trace: What was executed, over all samples and steps; None for a bare module.
        seconds: Wall clock, noise and sampler included.
        decoded: Pictures, sound or frames where the sampler decodes, else None.
    """

    samples: Tensor
    seeds: tuple[int, ...]
    trace: Trace | None
    seconds: float
    decoded: Any = None
