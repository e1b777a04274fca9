"""Puts heads on the boundaries of a plan, as a config asks for."""

from __future__ import annotations

import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exitkit.config import ExitConfig
from exitkit.errors import BoundaryError, suggest
from exitkit.heads.carried.head import CarriedHead, CarriedState
from exitkit.heads.embedding import TimestepEmbedding
from exitkit.heads.grid import frames_first, output_size, swapped
from exitkit.heads.own_output import AttachedHead
from exitkit.heads.tail import SharedTail, TailTranslator
from exitkit.heads.uncertainty import UncertaintyHead
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan


class Heads(nn.Module):
    """All heads of a wrapped model.

    Attributes:
        output: Output heads, one an exit.
        uncertainty: Uncertainty heads, one an exit (the same module everywhere if shared).
        final: Uncertainty head at the end of the network, or None.
        embedding: Timestep embedding, or None for backbones without a timestep.
        boundaries: Boundary of each exit.
        landings: Landing stage of each exit; None where the head makes the prediction.
    """

    def __init__(self, plan: Plan, config: ExitConfig) -> None:
        super().__init__()
        self.boundaries = select_boundaries(plan, config)
        self.landings = [_landing(plan, config, b) for b in self.boundaries]
        prediction = next(leaf for leaf in plan.outputs if leaf.path == plan.prediction)
        noisy = next(leaf for leaf in plan.inputs if leaf.path == plan.noisy)
        self.output_shape = prediction.row
        self.noisy_shape = noisy.row
        dim = config.uncertainty.embedding_dim if plan.timestep is not None else 0
        self.embedding = TimestepEmbedding(dim) if dim else None
        self.output = nn.ModuleList(
            self._output(plan, config, b, landing, dim)
            for b, landing in zip(self.boundaries, self.landings, strict=True)
        )
        dim = dim if config.uncertainty.timestep else 0
        self.uncertainty = self._uncertainty(config, dim)
        self.final: UncertaintyHead | None = None
        if config.uncertainty.final:
            last = plan.boundaries[-1].hidden
            shared = config.uncertainty.shared and last == self.boundaries[-1].hidden
            head = self.uncertainty[-1] if shared else self._new(last, config, dim)
            assert isinstance(head, UncertaintyHead)
            self.final = head

    def _new(self, hidden: HiddenSpec, config: ExitConfig, dim: int) -> UncertaintyHead:
        return UncertaintyHead(hidden, self.output_shape, dim, config.uncertainty.kind)

    def _uncertainty(self, config: ExitConfig, dim: int) -> nn.ModuleList:
        shapes = {b.hidden for b in self.boundaries}
        if not config.uncertainty.shared:
            return nn.ModuleList(self._new(b.hidden, config, dim) for b in self.boundaries)
        if config.uncertainty.shared == "by_shape":
            by_shape = {shape: self._new(shape, config, dim) for shape in sorted(shapes, key=repr)}
            return nn.ModuleList(by_shape[b.hidden] for b in self.boundaries)
        if len(shapes) > 1:
            raise BoundaryError(
                "uncertainty.shared=True needs exits of one shape, found "
                f"{', '.join(str(s.shape) for s in shapes)}. Use shared='by_shape' or False, or name "
                "exits of equal shape with exits=(...)."
            )
        head = self._new(self.boundaries[0].hidden, config, dim)
        return nn.ModuleList(head for _ in self.boundaries)

    def _output(
        self, plan: Plan, config: ExitConfig, at: Boundary, landing: int | None, dim: int
    ) -> nn.Module:
        if config.output.kind == "carried":
            assert landing is not None
            target = plan.boundaries[landing - 1].hidden
            return CarriedHead(
                at.hidden,
                target,
                dim,
                width=config.output.width,
                order=config.output.order,
                relative=landing == plan.num_stages and target == at.hidden,
                knots=config.output.knots,
            )
        if landing is None:
            return AttachedHead(at.hidden, self.output_shape, self.noisy_shape, dim)
        return SharedTail() if config.output.kind == "shared" else TailTranslator(at.hidden, dim)

    def embed(self, timestep: Tensor) -> Tensor:
        """Embedding of timesteps on the scale 0..1000.

        Arguments:
            timestep: Timesteps, with shape (B,).

        Returns:
            The embedding, with shape (B, E); E is 0 without a timestep.
        """
        if self.embedding is None:
            return timestep.new_zeros(timestep.shape[0], 0)
        parameter = next(self.parameters(), None)
        embedded: Tensor = self.embedding(timestep)
        return embedded if parameter is None else embedded.to(parameter.dtype)

    def size_of(self, noisy: Tensor) -> tuple[int, ...] | None:
        """Spatial size of the output for a noisy input (B, ...); None where it is the example's."""
        output, built = self.output_shape, self.noisy_shape
        if any(frames_first(b.hidden, output) for b in self.boundaries) and len(built) == 4:
            return output_size(swapped(output), swapped(built), noisy.transpose(1, 2))
        return output_size(output, built, noisy)


def _landing(plan: Plan, config: ExitConfig, at: Boundary) -> int | None:
    kind, resume = config.output.kind, config.output.resume
    if kind == "output" or (kind in ("tail", "shared") and not at.lands):
        return None
    if kind in ("tail", "shared"):
        return plan.num_stages
    if resume == "tail" or (resume == "auto" and at.lands):
        return plan.num_stages
    if at.mirror is None:
        raise BoundaryError(
            f"{plan.class_name}: exit {at.path!r} has no mirrored stage to resume at, since no later "
            "stage takes its skips from here or before. Name another exit with exits=(...), or use "
            "OutputConfig(resume='tail')."
        )
    return at.mirror - 1


def select_boundaries(plan: Plan, config: ExitConfig) -> list[Boundary]:
    """Resolves `config.exits` to boundaries, in execution order.

    Arguments:
        plan: The plan.
        config: Its `exits` are indices into the usable boundaries (1-based, negative from the end),
            paths, or wildcards.

    Returns:
        The boundaries.

    Raises:
        BoundaryError: If an index or a name is not there; near misses are suggested.
    """
    usable = [b for b in plan.boundaries if b.usable]
    if config.exits is None:
        # Nobody named them: those that a carried exit cannot resume from are not meant.
        kind, resume = config.output.kind, config.output.resume
        if kind == "carried" and resume != "tail":
            lands = resume == "auto"
            return [b for b in usable if b.mirror is not None or b.lands and lands] or usable
        return usable
    paths = [b.path for b in usable]
    picked: set[int] = set()
    for name in config.exits:
        if isinstance(name, str):
            found = {i for i, path in enumerate(paths) if fnmatch.fnmatchcase(path, name)}
        else:
            at = name - 1 if name > 0 else len(usable) + name
            found = {at} if 0 <= at < len(usable) and name != 0 else set()
        if not found:
            raise BoundaryError(_no_boundary(plan, paths, name))
        picked |= found
    return [usable[i] for i in sorted(picked)]


def _no_boundary(plan: Plan, paths: list[str], name: str | int) -> str:
    known = {b.path: b.reason for b in plan.boundaries if not b.usable}
    if name in known:
        return (
            f"{plan.class_name}: boundary {name!r} cannot carry an exit: {known[str(name)]}. Usable "
            f"are {paths[0]!r} to {paths[-1]!r}."
        )
    return (
        f"{plan.class_name} has no boundary {name!r} ({len(paths)} usable boundaries, {paths[0]!r} to "
        f"{paths[-1]!r}, numbered 1 to {len(paths)}).{suggest(str(name), paths)} See "
        "ek.inspect(model, example_inputs=...)."
    )


def count_macs(heads: Heads, plan: Plan) -> list[tuple[float, float]]:
    """Counts multiply-accumulates of the heads for one row.

    Arguments:
        heads: The heads.
        plan: The plan they were built for.

    Returns:
        For each exit: MACs of the output head and of the uncertainty head.
    """
    parameter = next(heads.parameters())
    embedding = heads.embed(torch.zeros(1, device=parameter.device))

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)

    def macs(head: nn.Module, *args: object) -> float:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            head(*args)
        return counter.get_total_flops() / 2

    counted = []
    for i, (at, landing) in enumerate(zip(heads.boundaries, heads.landings, strict=True)):
        hidden, head = zeros(at.hidden.shape), heads.output[i]
        if isinstance(head, CarriedHead):
            value, gap = (
                zeros(plan.boundaries[(landing or 1) - 1].hidden.shape),
                embedding.new_ones(1),
            )
            state = CarriedState(hidden, value, gap, hidden, value, gap, gap)
            output = macs(head, hidden, embedding, state)
        elif landing is None:
            output = macs(head, hidden, embedding, zeros(heads.noisy_shape))
        else:
            output = macs(head, hidden, embedding)
        counted.append((output, macs(heads.uncertainty[i], hidden, embedding)))
    return counted
