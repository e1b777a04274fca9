"""Dry runs with hooks on every module: who called whom, with which tensors, and what moved.

Tensors are not kept. Of each leaf the record holds its shape, a *token* (equal for the same tensor
object) and a *fingerprint*: random projections along every axis, from which a second run with another
noisy input tells what lies on the noisy path and how rows are laid out. So a dry run costs the
memory of one forward.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.modes.compiled import eager
from exitkit.modes.flags import evaluating, preserved_rng
from exitkit.modes.macs import MacCounter
from exitkit.modes.snapshot import is_kept, kept_state
from exitkit.modes.state_records import WRITTEN
from exitkit.surgery.fingerprints import Prints, Tokens
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.tree import contents, copied, leaves, substitute

_MOVED = 1e-6  # relative change of a fingerprint that counts as moved: above rounding


@dataclass
class LeafRecord:
    """Shape, identity and fingerprint of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    token: int
    prints: tuple[Tensor, ...] | None


@dataclass
class CallRecord:
    """One call of one module.

    Attributes:
        path: Dotted path of the module.
        module: The module.
        nth: Calls of that module before this one.
        parent: Index of the calling record, or None for the backbone itself.
        inputs: Leaves by parameter name.
        lists: Length of every argument that is a list or a plain tuple.
        objects: Tensors that plain objects among the arguments hold, and iterators, by path.
        replaced: Entries of containers among the arguments that the call has put in or taken out.
        outputs: Leaves of the output.
        skeleton: The output with None for each of its tensors.
        macs: Multiply-accumulates inside, all rows.
    """

    path: str
    module: nn.Module
    nth: int
    parent: int | None
    inputs: dict[str, LeafRecord]
    lists: dict[str, int] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    outputs: dict[str, LeafRecord] = field(default_factory=dict)
    skeleton: Any = None
    macs: float = 0.0


class DryRun:
    """Records one forward of a module, and leaves nothing of it behind.

    Arguments:
        module: The backbone, in the mode in which it should run.
        fingerprints: Whether to fingerprint leaves.
        count_macs: Whether to count multiply-accumulates: of every product (`operators`), the same
            with attention in its usual kernels (`fused`), or of linear and convolution layers alone
            (`layers`), for what operators cannot be counted in.
        restores: Whether the module gets its state back; if not, whoever asks for it does that.

    Attributes:
        output: What the module returned.
        calls: The calls in order.
        left: What the forward had left on the module, by path; None for what is no tensor.
        unwatched: What hangs on the module and is too large to be watched, by path.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        fingerprints: bool = True,
        count_macs: Literal["operators", "fused", "layers"] | None = None,
        restores: bool = True,
    ) -> None:
        self.module = module
        self._restores = restores
        self.output: Any = None
        self.left: dict[str, LeafRecord | None] = {}
        self.unwatched: list[str] = []
        self.calls: list[CallRecord] = []
        self._prints = Prints() if fingerprints else None
        counts = count_macs in ("operators", "fused")
        self._counter = MacCounter(fused=count_macs == "fused") if counts else None
        self._by_layers = count_macs == "layers"
        self._tokens = Tokens()
        self._stack: list[tuple[int, dict[str, Any], Bound]] = []
        self._counts: dict[str, int] = {}

    def _leaf(self, tensor: Tensor) -> LeafRecord:
        prints = self._prints.of(tensor) if self._prints and not tensor.is_complex() else None
        return LeafRecord(tuple(tensor.shape), tensor.dtype, self._tokens.of(tensor), prints)

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        bound = bind(signature_of(module.forward), args, kwargs)
        given, held = bound.tensors(), held_by(bound)
        record = CallRecord(
            path,
            module,
            self._counts.get(path, 0),
            self._stack[-1][0] if self._stack else None,
            {p: self._leaf(t) for p, t in given},
            bound.lists(),
            tuple(p for p, v in held.items() if _is_hidden(v) and p not in dict(given)),
        )
        self._counts[path] = record.nth + 1
        if self._counter:
            record.macs = -self._counter.macs
        self._stack.append((len(self.calls), held, bound))
        self.calls.append(record)

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        index, before, bound = self._stack.pop()
        for held in before.values():
            if isinstance(held, Tensor):
                self._tokens.of(held)  # looks once more: a block may work in place
        record, after = self.calls[index], held_by(bound)
        record.replaced = tuple(
            path
            for path in {**before, **after}
            if path not in before or path not in after or before[path] is not after[path]
        )
        record.outputs = {p: self._leaf(t) for p, t in leaves(output)}
        record.skeleton = substitute(output, dict.fromkeys(record.outputs))
        if self._counter:
            record.macs += self._counter.macs
        if self._by_layers:
            for above in [index, *(i for i, *_ in self._stack)]:
                self.calls[above].macs += _layer_macs(record.module, record.outputs)

    @property
    def written(self) -> set[int]:
        """Tokens of tensors that something changed in place."""
        return self._tokens.written

    def run(self, inputs: Bound) -> DryRun:
        """Runs the module once and returns itself.

        Arguments:
            inputs: Arguments by name.

        Returns:
            This record, filled.

        Raises:
            TracingError: If the forward raises.
        """
        if not self._restores:
            return self._record(inputs)
        with kept_state(self.module) as before:
            self._record(inputs)
        self.unwatched = before.unwatched
        self.left = {
            path: self._leaf(value) if isinstance(value, Tensor) else None
            for path, value in before.left.items()
            if not (isinstance(value, nn.Parameter) or getattr(value, "is_meta", False))
        }  # weights that hooks bring and send away are no state
        written = [path for path, value in before.left.items() if value is WRITTEN]
        if written:
            raise UnsupportedBackboneError(
                f"{type(self.module).__name__} writes into parameters or large tensors when it runs "
                f"({', '.join(written[:3])}), also in eval mode, so no run can be tried and undone. "
                "Keep what a forward changes in buffers, or change it outside of the forward."
            )
        return self

    def _record(self, inputs: Bound) -> DryRun:
        # A forward may take entries out of a list, or write into what it was given.
        args, kwargs = Bound(copied(inputs.values), inputs.signature).split()
        hooks: list[RemovableHandle] = []
        with ExitStack() as stack:
            stack.callback(_remove, hooks)
            for path, module in self.module.named_modules():
                enter = functools.partial(self._enter, path)
                hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave))
            if self._counter:
                stack.enter_context(self._counter)
            stack.enter_context(torch.no_grad())
            try:
                self.output = self.module(*args, **kwargs)
            except Exception as error:  # any third-party error: shown with what was being tried
                shapes = ", ".join(f"{p} {tuple(t.shape)}" for p, t in inputs.tensors())
                raise TracingError(
                    f"{type(self.module).__name__} could not be run on the example inputs "
                    f"({shapes}): {type(error).__name__}: {error}. example_inputs must be what you "
                    "call the model with: a tuple is positional, a dict is keyword, "
                    "ek.Inputs(*args, **kwargs) is both."
                ) from error
        return self


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _is_hidden(held: Any) -> bool:
    """Whether this is, or may bring, rows that nobody can choose from unless it is an argument itself."""
    return isinstance(held, Tensor | Iterator)


def held_by(bound: Bound) -> dict[str, Any]:
    """What all arguments hold, tensors or not, with what plain objects hold beside tensors, by path."""
    return dict(held for name, value in bound.values.items() for held in contents(value, name))


def _layer_macs(module: nn.Module, outputs: dict[str, LeafRecord]) -> float:
    """Multiply-accumulates of a linear or convolution layer; 0 of anything else."""
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or len(outputs) != 1:
        return 0.0
    positions = torch.Size(next(iter(outputs.values())).shape).numel() / module.weight.shape[0]
    return float(positions * module.weight.numel())


def keep_common(runs: Sequence[DryRun]) -> None:
    """Drops calls of modules that run more often in one run than in another, in place.

    A side network may run once for every so many frames. What it calls goes with it; what remains
    hangs from the nearest call that is left.

    Arguments:
        runs: Runs of one backbone.
    """
    counts = [Counter(c.path for c in run.calls) for run in runs]
    uneven = {path for count in counts for path in count if len({c[path] for c in counts}) > 1}
    if not uneven:
        return
    for run in runs:
        kept: list[CallRecord] = []
        place: dict[int | None, int | None] = {None: None}
        for i, call in enumerate(run.calls):
            above = place[call.parent]
            if call.path in uneven:
                place[i] = above
                continue
            place[i] = len(kept)
            call.parent = above
            kept.append(call)
        run.calls = kept


def moved(first: LeafRecord, second: LeafRecord) -> bool:
    """Whether a leaf differs between two runs on equal shapes."""
    if first.shape != second.shape:
        return True
    if first.prints is None or second.prints is None:
        return False
    a, b = first.prints[0], second.prints[0]
    return bool(((a - b).abs() > _MOVED * (a.abs() + b.abs() + 1e-12)).any())


def moved_entries(first: LeafRecord, second: LeafRecord, axis: int) -> list[int]:
    """Which entries along an axis differ between two runs on equal shapes."""
    if first.prints is None or second.prints is None or first.shape != second.shape:
        return []
    a, b = first.prints[axis], second.prints[axis]
    return ((a - b).abs() > _MOVED * (a.abs() + b.abs() + 1e-12)).nonzero().flatten().tolist()


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Runs the body in eval mode, uncompiled, with fixed random numbers; restores modes and states.

    Arguments:
        module: The backbone.

    Yields:
        Nothing.
    """
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    mode = nullcontext() if is_kept(module) else evaluating(module)
    with preserved_rng(devices), mode, eager(), kept_state(module):
        yield
