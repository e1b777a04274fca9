"""How a network is called with a noisy input, a timestep and conditions, by what is known of its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from exitkit.execution.calls import CallReader
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.prediction import find_prediction
from exitkit.surgery.spec import Plan


@dataclass(frozen=True)
class CallForm:
    """How a network is called with a noisy input and a timestep, and which tensor it predicts.

    Attributes:
        noisy: Name of the noisy input where it goes by name, else None; `batch.x` inside a mapping.
        timestep: Name of the timestep where it goes by name, else None.
        timed: Whether it takes a timestep.
        parameters: Where one of the two is inside a mapping, the parameters of the forward.
        reader: Reads outputs as the plan of a wrapped backbone says; None for a bare network, where
            `find_prediction` decides by what it sees.
    """

    noisy: str | None = None
    timestep: str | None = None
    timed: bool = True
    reader: CallReader | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, forward: Callable[..., Any]) -> CallForm:
        """The form of a planned backbone: by name where noisy input and timestep do not lead.

        Arguments:
            plan: The backbone's plan.
            forward: Its forward.

        Returns:
            The form.
        """
        reader = CallReader(plan)
        if "." in plan.noisy or "." in (plan.timestep or ""):
            timed, parameters = plan.timestep is not None, signature(forward).parameters
            return cls(plan.noisy, plan.timestep, timed, reader, parameters)
        if plan.timestep is None:
            return cls(timed=False, reader=reader)
        names = (plan.noisy, plan.timestep)
        leading = tuple(signature(forward).parameters)[:2]
        if leading != names and all(name.isidentifier() for name in names):
            return cls(*names, reader=reader)
        return cls(reader=reader)

    @property
    def leads(self) -> bool:
        """Whether the network is called with noisy input and timestep in front."""
        return self.timed and self.noisy is None

    def arguments(self, noisy: Tensor, timestep: Tensor, **conditions: Any) -> Inputs:
        """The arguments of a call.

        Arguments:
            noisy: Noisy input, with shape (B, ...).
            timestep: Timesteps, with shape (B,).
            conditions: Further arguments by name.

        Returns:
            Arguments by position and by name.
        """
        if self.parameters and self.noisy is not None:
            own = {self.noisy: noisy} | ({self.timestep: timestep} if self.timestep else {})
            return Inputs(**self._within(own, conditions))
        if not self.timed:
            return Inputs(noisy, **conditions)
        if self.noisy is None or self.timestep is None:
            return Inputs(noisy, timestep, **conditions)
        return Inputs(**{self.noisy: noisy, self.timestep: timestep, **conditions})

    def _within(self, own: Mapping[str, Tensor], conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments, some inside mappings; conditions that are no parameters beside the noisy input."""
        beside = (self.noisy or "").rpartition(".")[0]
        named = {n: n if n in self.parameters else f"{beside}.{n}" for n in conditions}
        made: dict[str, Any] = {}
        for path, value in {**own, **{named[n]: v for n, v in conditions.items()}}.items():
            *heads, last = path.split(".")
            if heads and self.parameters[heads[0]].kind is Parameter.VAR_KEYWORD:
                heads = heads[1:]
            place = made
            for head in heads:
                place = place.setdefault(head, {})
            place[last] = value
        return made

    def prediction(self, output: Any, noisy: Tensor | None = None) -> Tensor:
        """The prediction in an output.

        Arguments:
            output: What the network returned.
            noisy: Its noisy input; None for a classifier.

        Returns:
            The prediction, rows first, with shape (B, ...).
        """
        if self.reader is not None:
            return self.reader.prediction(output)
        return find_prediction(output, noisy)
