"""Puts heads on the boundaries of a plan, as a config asks for."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from exitkit.config import ExitConfig
from exitkit.errors import BoundaryError, suggest
from exitkit.heads.completion.head import CompletionHead
from exitkit.heads.embedding import TimestepEmbedding
from exitkit.heads.fitted import Fitted
from exitkit.heads.grid import frames_first, output_size, swapped
from exitkit.heads.kinds import OutputKind, Site, output_kind
from exitkit.heads.sizes import FittedSizes
from exitkit.heads.uncertainty import UncertaintyHead
from exitkit.modes.dtypes import compute_dtype
from exitkit.modes.macs import MacCounter
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan


class Heads(Fitted):
    """All heads of a wrapped model.

    Its own mark is about the output heads; each uncertainty head has one of its own.

    Attributes:
        kind: Kind of the output heads.
        output: Output heads, one an exit.
        uncertainty: Uncertainty heads, one an exit (the same module everywhere if shared).
        completion: What completes a step without the backbone, or None.
        final: Uncertainty head at the end of the network, or None.
        embedding: Timestep embedding, or None for backbones without a timestep.
        boundaries: Boundary of each exit.
        landings: Landing stage of each exit; None where the head makes the prediction.
        sizes: Sizes of the samples that they were fitted on.
        counted: What `count_macs` found last, and of which modules.
    """

    @torch.inference_mode(False)  # parameters made in that mode could never be fitted or marked
    def __init__(self, plan: Plan, config: ExitConfig) -> None:
        super().__init__()
        self.sizes = FittedSizes()
        self.counted: tuple[tuple[nn.Module, ...], list[tuple[float, float]]] = ((), [])
        self.kind: OutputKind = output_kind(config.output.kind)
        self.boundaries = select_boundaries(plan, config)
        self.landings = [self.kind.landing(plan, b, config.output) for b in self.boundaries]
        _check_lengths(plan, self.boundaries, self.landings)
        prediction = next(leaf for leaf in plan.outputs if leaf.path == plan.prediction)
        noisy = next(leaf for leaf in plan.inputs if leaf.path == plan.noisy)
        self.output_shape = prediction.row
        self.noisy_shape = noisy.row
        dim = config.uncertainty.embedding_dim if plan.timestep is not None else 0
        self.embedding = TimestepEmbedding(dim) if dim else None
        self.sites = [
            self._site(plan, b, landing, dim)
            for b, landing in zip(self.boundaries, self.landings, strict=True)
        ]
        self.completion: CompletionHead | None = self.kind.whole(plan, config.output)
        self.output = nn.ModuleList(self.kind.build(site, config.output) for site in self.sites)
        dim = dim if config.uncertainty.timestep else 0
        self.uncertainty = self._uncertainty(config, dim)
        self.final: UncertaintyHead | None = None
        if config.uncertainty.final:
            last = plan.boundaries[-1].hidden
            shared = config.uncertainty.shared and last == self.boundaries[-1].hidden
            head = self.uncertainty[-1] if shared else self._new(last, config, dim)
            assert isinstance(head, UncertaintyHead)
            self.final = head

    @classmethod
    def paying(cls, plan: Plan, config: ExitConfig) -> Heads:
        """Heads at the exits that a config names, or else at those that save work, or the first of them.

        Arguments:
            plan: The plan.
            config: The config.

        Returns:
            The heads. Where no default exit costs less than the full network, all of them stay.
        """
        if config.exits not in (None, "first"):
            return cls(plan, config)
        before = torch.get_rng_state()

        def at(paths: Iterable[str]) -> Heads:
            torch.set_rng_state(before)  # heads start as if no others had ever been
            return cls(plan, config.model_copy(update={"exits": tuple(paths)}))

        paths = [b.path for b in select_boundaries(plan, config)]
        if config.exits == "first":
            # One by one: the heads of all exits of a large network may not fit into memory.
            each = (at([path]) for path in paths)
            return next((heads for heads in each if heads.costs(plan)[0] < 1), None) or at(
                paths[:1]
            )
        heads = at(paths)
        names = [path for path, cost in zip(paths, heads.costs(plan), strict=True) if cost < 1]
        return heads if not names or len(names) == len(paths) else at(names)

    @torch.inference_mode(False)
    def place_like(self, backbone: nn.Module) -> None:
        """Moves the heads to the device of a backbone's parameters, and to the dtype it computes in.

        Arguments:
            backbone: The backbone. An offloaded one is on no device; its heads follow the inputs when it
                is called.
        """
        reference = next((p for p in backbone.parameters() if p.is_floating_point()), None)
        if reference is not None:
            device = None if reference.device.type == "meta" else reference.device
            self.to(device=device, dtype=compute_dtype(backbone))

    def costs(self, plan: Plan) -> list[float]:
        """Part of the full MACs that a row spends which leaves at each exit, output head included."""
        found = []
        for boundary, landing, (made, _) in zip(
            self.boundaries, self.landings, count_macs(self), strict=True
        ):
            after = sum(s.macs for s in plan.stages if landing and s.index > landing)
            found.append(boundary.share + (after + made) / (plan.macs or 1.0))
        return found

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

    def _site(self, plan: Plan, at: Boundary, landing: int | None, dim: int) -> Site:
        target = None if landing is None else plan.boundaries[landing - 1].hidden
        at_end = landing == plan.num_stages
        return Site(at.hidden, target, at_end, self.output_shape, self.noisy_shape, dim)

    def mark_fitted(self, uncertainty: bool = True, *, size: Sequence[int] | None = None) -> None:
        """Says that the heads are fitted: rules then read the uncertainty, and carried exits are used.

        `fit` and a backward through the losses do this. By hand it is for heads whose start is what
        is wanted, such as carried ones that are to reuse what the last full step added.

        Arguments:
            uncertainty: Whether the uncertainty heads are fitted, too.
            size: Shape of a row of the noisy input that they are fitted on, if that is known.
        """
        self.mark()
        if size is not None:
            self.sizes.note(size)
        for head in (*self.uncertainty, self.final) if uncertainty else ():
            if isinstance(head, UncertaintyHead):
                head.mark()

    def embed(self, timestep: Tensor) -> Tensor:
        """Embedding of timesteps on the scale 0..1000.

        Arguments:
            timestep: Timesteps, with shape (B,).

        Returns:
            The embedding, with shape (B, E); E is 0 without a timestep.
        """
        if self.embedding is None:
            return timestep.new_zeros(timestep.shape[0], 0)
        embedded: Tensor = self.embedding(timestep)
        if not len(self.uncertainty):
            return embedded
        head = self.uncertainty[0]
        assert isinstance(head, UncertaintyHead)
        dtype = head.linear.weight.dtype
        return embedded if embedded.dtype == dtype else embedded.to(dtype)

    def size_of(self, noisy: Tensor) -> tuple[int, ...] | None:
        """Spatial size of the output for a noisy input (B, ...); None where it is the example's."""
        output, built = self.output_shape, self.noisy_shape
        if any(frames_first(b.hidden, output) for b in self.boundaries) and len(built) == 4:
            return output_size(swapped(output), swapped(built), noisy.transpose(1, 2))
        return output_size(output, built, noisy)


def _check_lengths(plan: Plan, at: list[Boundary], landings: list[int | None]) -> None:
    """Refuses outputs of exits' own that would read padding of the longest row of a batch.

    Raises:
        BoundaryError: If there are such.
    """
    pairs = zip(at, landings, strict=True)
    own = [b.path for b, landing in pairs if landing is None and b.stage in plan.padded]
    if own:
        raise BoundaryError(
            f"{plan.class_name}: behind {', '.join(own[:3])} a row is as long as the longest of its batch, "
            "and an exit that makes its own output would read other places of a row among others than "
            "alone. Use a preset whose exits go on in the backbone (relative, carried), name other exits "
            "with exits=(...), or wrap with rows of one length and call it so."
        )


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
    if config.exits is None or config.exits == "first":
        return output_kind(config.output.kind).default_exits(plan, usable, config.output)
    paths = [b.path for b in usable]
    picked: set[int] = set()
    for name in config.exits:
        if isinstance(name, str):
            # A path that is there is meant itself, whatever signs of a pattern are in it.
            exact = {i for i, path in enumerate(paths) if path == name}
            found = exact or {i for i, p in enumerate(paths) if fnmatch.fnmatchcase(p, name)}
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


def count_macs(heads: Heads) -> list[tuple[float, float]]:
    """Counts multiply-accumulates of the heads for one row.

    Arguments:
        heads: The heads.

    Returns:
        For each exit: MACs of the output head and of the uncertainty head.
    """
    if not heads.sites:
        return []
    of = (*heads.output, *heads.uncertainty)
    known, found = heads.counted
    if len(of) == len(known) and all(map(operator.is_, of, known)):
        return found
    like = next(heads.parameters())
    embedding = heads.embed(torch.zeros(1, device=like.device))

    def macs(head: nn.Module, *args: object) -> float:
        with torch.no_grad(), MacCounter() as counter:
            head(*args)
        return counter.macs

    counted = []
    for site, output, uncertainty in zip(heads.sites, heads.output, heads.uncertainty, strict=True):
        hidden, noisy = (like.new_zeros(1, *shape) for shape in (site.hidden.shape, site.noisy))
        state = heads.kind.blank_state(site, like)
        made = macs(output, hidden, embedding, noisy, state)
        counted.append((made, macs(uncertainty, hidden, embedding)))
    heads.counted = of, counted  # which exits pay is asked before the same heads are laid out
    return counted
