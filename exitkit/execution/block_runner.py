"""One forward of a gated backbone: which call of the plan each call of a block is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution.gate import CallSite, Gate, GateSet
from exitkit.execution.recompute import Past, refuse_reentrant
from exitkit.execution.stream import Stream
from exitkit.surgery.spec import Plan


class BlockRunner(ABC):
    """One forward of a gated backbone, in which every gate hands its calls to `through`.

    Arguments:
        gates: The gates it answers to.
        plan: The plan.
        batch: Rows B.
    """

    def __init__(self, gates: GateSet, plan: Plan, batch: int) -> None:
        self.gates, self.plan, self.batch = gates, plan, batch
        self.stream = Stream(gates.bases)
        self._calls = [0] * len(gates.gates)
        self._with_gradients = torch.is_grad_enabled()
        self._recomputes = False

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs, passes or fills one call of a block.

        Raises:
            PlanMismatchError: If the block is called more often than in the example.
        """
        number = gate.number
        nth = self._calls[number]
        self._calls[number] = nth + 1
        if nth < len(gate.sites):
            return self.call(gate, gate.sites[nth], args, kwargs)
        raise PlanMismatchError(
            f"{self.plan.class_name}: block {gate.sites[0].call.path!r} ran {nth + 1} times, "
            f"{len(gate.sites)} times in the example. Wrap with example_inputs like this call."
        )

    @abstractmethod
    def call(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs, passes or fills one call of a block, which the plan calls `site`, for all rows."""

    def before_call(self) -> Self:
        """This forward as it is now, to run a call once more in a backward pass."""
        past = copy(self)
        past._recomputes, past.stream = True, self.stream.copied()
        return past

    def held(self) -> tuple[Tensor, ...]:
        """Tensors that it may put behind a block as they are."""
        return ()

    def past(self, gate: Gate, site: CallSite) -> Past | None:
        """What a checkpoint needs to run a call again; None without gradients."""
        if self._recomputes or not self._with_gradients:
            return None
        if not torch.is_grad_enabled():
            refuse_reentrant(site.call.path)
            return None
        return Past(self, gate, site)

    def check_met(self) -> None:
        """Makes sure, behind a forward that ran to the end, that the gates are where they were put.

        Raises:
            PlanMismatchError: If a block was exchanged, cut off or given another forward.
        """
        gates = self.gates.gates.values()
        self.gates.check_placed(gate for gate in gates if not self._calls[gate.number])

    def check_landed(self, landed: bool, landing: int, origin: str) -> None:
        """Makes sure that what was to be put behind a block was put there.

        Arguments:
            landed: Whether it was.
            landing: Stage of that block.
            origin: What was to be put there, for the message.

        Raises:
            PlanMismatchError: If it was not.
        """
        if not landed:
            raise PlanMismatchError(
                f"{self.plan.class_name}: {origin} go on behind {self.plan.stages[landing - 1].path!r}, "
                "which this call passed over (an argument such as skip_layers, or a branch of the "
                "forward). Make such calls with model.policy = ek.policies.NeverExit(), or wrap with "
                "example_inputs like this call."
            )
