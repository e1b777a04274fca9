"""Kinds of output heads (`OutputConfig.kind`), by what the rest of the package asks of them.

The module of a head registers its kind here. Nobody else compares the names of kinds: who needs to
know asks `model.heads.kind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.heads.carried.state import CarriedState
from exitkit.heads.completion.head import CompletionHead
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan


class OutputHead(Protocol):
    """An output head, as all are called; each looks at what it needs."""

    def __call__(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        """Makes what leaves with some rows.

        Arguments:
            hidden: Hidden state at the exit, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            noisy: Noisy input, with shape (B, *noisy).
            state: What the rows keep from their last full steps.

        Returns:
            The hidden state where the rows land, or, for exits that land nowhere, the prediction;
            with shape (B, ...).
        """


@dataclass(frozen=True)
class Site:
    """What a head is built for.

    Attributes:
        hidden: Layout of the hidden state at the exit.
        landing: Layout of the hidden state where rows land; None where the head makes the prediction.
        at_end: Whether rows land at the end of the network.
        output: Shape of the backbone's prediction without rows, or (classes,).
        noisy: Shape of the noisy input without rows.
        embedding_dim: Width E of the timestep embedding; 0 without timestep.
    """

    hidden: HiddenSpec
    landing: HiddenSpec | None
    at_end: bool
    output: tuple[int, ...]
    noisy: tuple[int, ...]
    embedding_dim: int


class OutputKind(ABC):
    """A kind of output head.

    Attributes:
        name: The value of `OutputConfig.kind`.
        needs_trajectory: Exits complete a row with what its earlier full steps left: they have no
            output on a single input, and cannot be left at every step.
        through_tail: The backbone's own tail makes the output from what leaves, where hidden states
            can reach it; untrained, it is the hidden state itself.
        fitted_on: What these heads are fitted on: single `examples`, `windows` of several steps of a
            rollout, or the `states` of a sampler that they lead to themselves.
    """

    name: ClassVar[str]
    needs_trajectory: ClassVar[bool] = False
    through_tail: ClassVar[bool] = False
    fitted_on: ClassVar[Literal["examples", "windows", "states"]] = "examples"

    @abstractmethod
    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        """Stage behind which rows that leave at a boundary go on; None for an own prediction.

        Raises:
            BoundaryError: If the config asks for a place that this boundary does not have.
        """

    @abstractmethod
    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        """Makes a head."""

    def default_exits(
        self, plan: Plan, usable: Sequence[Boundary], config: OutputConfig
    ) -> list[Boundary]:
        """Boundaries that carry exits where the config names none."""
        return list(usable)

    def whole(self, plan: Plan, config: OutputConfig) -> CompletionHead | None:
        """Makes the head that completes a step without the backbone; None for kinds without one.

        Raises:
            BoundaryError: If the backbone's steps cannot be completed.
        """
        return None

    def blank_state(self, site: Site, like: Tensor) -> CarriedState | None:
        """A state of zeros for one row, to count with; None where the head looks at none.

        Arguments:
            site: What the head was built for.
            like: A tensor with the dtype and the device wanted.
        """
        return None


_KINDS: dict[str, OutputKind] = {}
_Kind = TypeVar("_Kind", bound=OutputKind)


def register_kind(kind: type[_Kind]) -> type[_Kind]:
    """Makes a kind known under its name; decorates its class."""
    _KINDS[kind.name] = kind()
    return kind


def output_kind(name: str) -> OutputKind:
    """The kind with a name of `OutputConfig.kind`."""
    return _KINDS[name]
