"""What surgery finds, as frozen data: leaves, calls, stages, boundaries and the plan.

Nothing here runs or holds a module. A *leaf* is one tensor inside the arguments or the output of a
call, addressed by a path such as `hidden_states` or `[0]` or `.sample`. A *stage* is the repeated
unit that is skipped; it may consist of several calls. A *boundary* is the point after a stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal


@dataclass(frozen=True)
class Leaf:
    """One tensor of a call.

    Attributes:
        path: Address inside the arguments or the output.
        shape: Shape in the probing run: batch of two, or the one packed sequence.
        dtype: Name of the dtype.
        axis: Batch axis, or None if the tensor is the same for every batch size.
        fold: How many entries of that axis belong to one row (frames folded into the batch).
        tail: Constant entries at the end of that axis that belong to no row.
        tiled: Folded entries of one row are `B` apart (tiled) rather than adjacent.
        moved: Whether it changes with the noisy input.
        listed: The leaf stands for a list of tensors, one a row; `shape` is that of their stack.
        whole: The backbone has no batch axis and all of this tensor is one row; `axis` is 0 and
            `fold` its whole length.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    fold: int = 1
    tail: int = 0
    tiled: bool = False
    moved: bool = False
    listed: bool = False
    whole: bool = False

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of what heads see of one row: without the batch axis, if there is one."""
        if self.axis is None or self.whole:
            return self.shape
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


@dataclass(frozen=True)
class Call:
    """One call of one module inside a stage.

    Attributes:
        path: Dotted path of the module.
        nth: How many times that module ran before in the same forward.
        inputs: Tensor leaves of the arguments, by parameter name.
        outputs: Tensor leaves of the output.
        hidden_in: Path of the hidden state among the inputs.
        hidden_out: Path of the hidden state among the outputs.
        passes: Pairs (output path, input path) that a row keeps when the call is skipped.
        base: The caller adds the output to an older hidden state (`h = h + block(norm(h))`): the one
            that entered so many calls before this one, 0 for its own. The hidden state behind the
            call is their sum, and a skipped call hands on zeros. None: nothing is added.
        scale: What the caller multiplies the output with before it is added to the base.
        summed: The tail reads the sum of what this call and those of all stages before gave: the
            hidden state behind the call is that sum, and a skipped call adds nothing.
        lists: Arguments that are lists with one entry a row.
        skeleton: The output with None for each of its tensors.
        in_place: The hidden state that it hands on is the one that came in, changed in place.
        other_lists: Arguments that are lists of something else.
    """

    path: str
    nth: int
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    hidden_in: str | None
    hidden_out: str | None
    passes: tuple[tuple[str, str], ...]
    base: int | None = None
    scale: float = 1.0
    summed: bool = False
    lists: tuple[str, ...] = ()
    skeleton: Any = field(default=None, compare=False, repr=False)
    in_place: bool = False
    other_lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """The unit that is skipped, index 1..N in execution order."""

    index: int
    path: str
    class_name: str
    calls: tuple[Call, ...]
    macs: float


@dataclass(frozen=True)
class HiddenSpec:
    """What a head sees at a boundary: rows first, then this shape.

    Attributes:
        shape: (T, D) tokens, (C, H, W) or (H, W, C) features, (D,) vector; folded entries in front.
        channel_axis: Index of the channels in `shape`.
    """

    shape: tuple[int, ...]
    channel_axis: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def kind(self) -> Literal["tokens", "features", "vector", "other"]:
        """Layout family that decides which head is built."""
        if len(self.shape) == 1:
            return "vector"
        if len(self.shape) == 2 and self.channel_axis == 1:
            return "tokens"
        if len(self.shape) == 3:
            return "features"
        return "other"

    @property
    def numel(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Boundary:
    """The point after a stage, where rows may leave.

    Attributes:
        stage: Index of the stage before it.
        path: Dotted path of that stage.
        class_name: Class of that stage's module.
        leaf: The hidden state among the outputs of the stage's last call.
        hidden: The same, as heads see it.
        lands: Whether the hidden state fits the end of the last stage, so that the tail can take it.
        completes: Whether the tail reads nothing of the stages that are passed over from here but the
            hidden state at their end, so that one tensor put there takes the place of them all.
        mirror: Stage that resumes with fresh skips when the stages between are passed over.
        resume: Stage behind which a row goes on that left here in a trajectory; None if nowhere.
        share: Part of the full MACs spent when leaving here, in [0, 1], heads excluded.
        usable: Whether it can carry an exit.
        reason: Why it was chosen or refused, in words.
        no_resume: Why `resume` is None, in words.
        pays: Whether leaving here costs less than the full network, head included, as far as known.
    """

    stage: int
    path: str
    class_name: str
    leaf: Leaf
    hidden: HiddenSpec
    lands: bool
    mirror: int | None
    share: float
    usable: bool
    reason: str
    completes: bool = False
    resume: int | None = None
    no_resume: str = ""
    pays: bool = True


@dataclass(frozen=True)
class Plan:
    """Everything that surgery knows about a backbone.

    Attributes:
        class_name: Class of the backbone.
        inputs: Tensor leaves of the backbone's arguments.
        lists: Its arguments that are lists with one entry a row.
        noisy: Path of the noisy input (or image) among them.
        timestep: Path of the timestep among the arguments, or None.
        timestep_scale: What brings the timestep, less its origin, to the usual range 0..1000.
        outputs: Tensor leaves of the backbone's output.
        prediction: Path of the prediction among them.
        stages: The stages in execution order.
        boundaries: One for each stage, in order.
        macs: MACs of one full forward of one row.
        mechanism: `tail` when every usable boundary reaches the backbone's own tail, `attached`
            when none does, `mixed` when the later ones do.
        in_place: Hidden states are changed in place further on, so what is kept must be copied.
        rejected: (path, reason) of everything that looked like a block and is none.
        views: What each view of the backbone said, in words.
        batched: Whether it has rows. If not, a call is one packed sequence and leaves as a whole.
        timestep_origin: The timestep at no noise.
        doubts: What could not be told and is worth a declaration, in words.
        padded: Stages behind which a row is as long as the longest of its batch.
    """

    class_name: str
    inputs: tuple[Leaf, ...]
    noisy: str
    timestep: str | None
    timestep_scale: float
    outputs: tuple[Leaf, ...]
    prediction: str
    stages: tuple[Stage, ...]
    boundaries: tuple[Boundary, ...]
    macs: float
    mechanism: Literal["tail", "attached", "mixed"]
    in_place: bool
    rejected: tuple[tuple[str, str], ...]
    views: tuple[str, ...]
    lists: tuple[str, ...] = ()
    batched: bool = True
    timestep_origin: float = 0.0
    doubts: tuple[str, ...] = ()
    padded: tuple[int, ...] = ()

    @property
    def time(self) -> tuple[float, float]:
        """Scale and origin of the timestep."""
        return self.timestep_scale, self.timestep_origin

    @property
    def num_stages(self) -> int:
        """Number of stages N."""
        return len(self.stages)

    @property
    def noisy_leaf(self) -> Leaf:
        """The noisy input among the arguments."""
        return next(leaf for leaf in self.inputs if leaf.path == self.noisy)

    @property
    def prediction_leaf(self) -> Leaf:
        """The prediction among the outputs."""
        return next(leaf for leaf in self.outputs if leaf.path == self.prediction)

    def __str__(self) -> str:
        """A table of the boundaries and, below it, of what was rejected."""
        head = ("boundary", "path", "class", "hidden", "MACs", "usable", "carried")
        rows = [
            (
                str(b.stage),
                b.path,
                b.class_name,
                "x".join(map(str, b.hidden.shape)),
                f"{b.share:6.1%}",
                ("yes" if b.pays else "does not pay") if b.usable else b.reason,
                _resumes(b),
            )
            for b in self.boundaries
        ]
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
            for r in (head, *rows)
        ]
        for why, same in groupby(self.rejected, key=lambda found: found[1]):
            paths = [path for path, _ in same]
            if len(paths) > 4:
                paths = [f"{', '.join(paths[:3])} and {len(paths) - 3} more"]
            lines += [f"not a block: {path} ({why})" for path in paths]
        lines += [f"view: {view}" for view in self.views]
        title = (
            f"{self.class_name}: {self.num_stages} stages, noisy input {self.noisy!r}, "
            f"timestep {self.timestep!r}, exits by {self.mechanism}"
        )
        return "\n".join([title, *(f"in doubt: {doubt}" for doubt in self.doubts), *lines])


def _resumes(b: Boundary) -> str:
    """Where a row goes on that leaves at a boundary in a trajectory, in words."""
    if not b.usable:
        return ""
    return f"no: {b.no_resume}" if b.resume is None else f"resumes after stage {b.resume}"
