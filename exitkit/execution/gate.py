"""Row-gated blocks: the forward of each block of a backbone, replaced on the instance.

A hook cannot skip a block, and an attribute of the class would reach other models; an attribute of the
instance does neither, and survives gradient checkpointing. A gate finds the current run through a
context variable: without one of its own it calls the block as it always was, so the backbone stays
usable by itself, and threads do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exitkit.errors import AlreadyWrappedError, PlanMismatchError
from exitkit.execution.attributes import Attributes
from exitkit.execution.patching import (
    COPIED,
    ForwardOverride,
    copy_signature,
    found,
    own_forward,
    restore,
)
from exitkit.execution.recompute import Pasts
from exitkit.modes.snapshot import reaches
from exitkit.surgery.inputs import positional, signature_of
from exitkit.surgery.spec import Call, Leaf, Plan


class Runner(Protocol):
    """What a gate hands its call to."""

    @property
    def gates(self) -> object:
        """The gates it answers to."""

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs, passes or fills one call of a block."""


CURRENT: ContextVar[Runner | None] = ContextVar("exitkit_run", default=None)


@dataclass(frozen=True)
class CallSite:
    """One call of a block in a forward: what the plan says, in the form that a run asks for.

    Attributes:
        call: The plan's description.
        stage: Index of its stage.
        last: Whether it ends the stage.
        inputs: Tensors of the arguments, by path.
        outputs: Tensors of the output, by path.
        passes: Arguments that a skipped row keeps as output, by path of the output.
        number: Place among all calls of the forward, from 0.
        kept: Whether the run keeps something of this call for a later one.
        plain: Whether the block returns the hidden state alone, with nothing to be added to it.
        learns: Whether an output cannot be made from the arguments, so that its shape is learned.
        layout: Where rows are in arguments and output, for blocks that return the hidden state alone
            and keep it where they are skipped; None for others.
    """

    call: Call
    stage: int
    last: bool
    inputs: dict[str, Leaf]
    outputs: dict[str, Leaf]
    passes: dict[str, str]
    number: int
    kept: bool
    plain: bool
    learns: bool
    layout: tuple[object, ...] | None

    @classmethod
    def of(
        cls, call: Call, stage: int, last: bool, number: int = 0, kept: bool = False
    ) -> CallSite:
        """The form of a call of the plan."""
        inputs = {leaf.path: leaf for leaf in call.inputs}
        outputs = {leaf.path: leaf for leaf in call.outputs}
        passes = dict(call.passes)
        learns = len(passes) + (call.base is not None) < len(outputs)
        keeps = [*outputs] == [""] and call.hidden_in in inputs and passes.get("") == call.hidden_in
        layout: tuple[object, ...] | None = None
        if keeps and not call.lists and outputs[""].axis is not None:
            leaves = (outputs[""], *call.inputs)
            layout = (call.hidden_in, *((e.path, e.axis, e.fold, e.tail, e.tiled) for e in leaves))
        known = kept or call.summed
        plain = not call.hidden_out and call.base is None and not call.summed
        return cls(call, stage, last, inputs, outputs, passes, number, known, plain, learns, layout)


class Gate:
    """The replaced forward of one block.

    Arguments:
        block: The block.
        sites: Its calls in one forward.
        number: Which of the gates this is.
        owner: The set of gates that this one belongs to.
    """

    def __init__(
        self,
        block: nn.Module,
        sites: Sequence[CallSite],
        number: int,
        owner: object,
    ) -> None:
        self.block = block
        self.sites, self.number = list(sites), number
        self.owner = owner
        self.replaced = block.__dict__.get("forward")  # an instance forward of someone else
        self.bind(block.forward)
        self.shapes: dict[tuple[object, ...], dict[str, Tensor]] = {}
        # Whether arguments unlike the example have rows, by call, path and how they are unlike it.
        self.roles: dict[tuple[int, str, str], bool] = {}
        self.pasts = Pasts()

    def bind(self, original: Callable[..., Any]) -> None:
        """Takes the place of this forward."""
        self.original, self._compiled = original, False
        self.signature = signature_of(original)
        self.positional = positional(self.signature)
        copy_signature(self, original)

    def compile(self, options: dict[str, Any]) -> None:
        """Compiles what the gate calls: the block's own forward, not the gate itself."""
        self.original, self._compiled = torch.compile(self.original, **options), True

    @property
    def bare(self) -> Callable[..., Any] | None:
        """What the instance has for a forward without the gate: None where its class's will do."""
        return self.original if self._compiled else self.replaced

    def names(self, count: int) -> tuple[str, ...] | None:
        """Parameters that this many positional arguments go to; None where some have no name."""
        names = self.positional
        return None if names is None or len(names) < count else names[:count]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what `bind` makes: the block's own forward would be copied as the gate."""
        left_out = (*COPIED, "original", "signature", "positional")
        return {k: v for k, v in vars(self).items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.bind(self.replaced or own_forward(self.block))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the block as it was, or hands the call to the run that owns this gate."""
        run = CURRENT.get()
        if run is None or run.gates is not self.owner:
            past = self.pasts.find(args, kwargs) if self.pasts else None
            return self.original(*args, **kwargs) if past is None else past.again(args, kwargs)
        return run.through(self, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Gate:
        """A gate is bound to its block already."""
        return self


class GateSet:
    """All gates of one wrapped backbone: put in together, taken out together.

    Arguments:
        backbone: The backbone.
        plan: Its plan.

    Attributes:
        gates: Gates by the path of their block.
        learned: Forms of call for which the shapes of all outputs are known.
        bases: Calls whose entering hidden state something is added to behind them, by number.
        attributes: Tensors that hang on the blocks.
    """

    def __init__(self, backbone: nn.Module, plan: Plan) -> None:
        self._backbone = backbone
        self.gates: dict[str, Gate] = {}
        self.learned: set[object] = set()
        by_path: dict[str, list[CallSite]] = {}
        # Equal layouts and names become one object, which is quick to tell.
        alike: dict[object, Any] = {}
        flat = [(stage, call) for stage in plan.stages for call in stage.calls]
        self.bases = frozenset(
            i - call.base for i, (_, call) in enumerate(flat) if call.base is not None
        )
        for i, (stage, call) in enumerate(flat):
            site = CallSite.of(call, stage.index, call is stage.calls[-1], i, i in self.bases)
            site = replace(site, layout=alike.setdefault(site.layout, site.layout))
            by_path.setdefault(call.path, []).append(site)
        blocks = {path: backbone.get_submodule(path) for path in by_path}
        check_ungated(backbone)
        try:
            for path, block in blocks.items():
                gate = Gate(block, by_path[path], len(self.gates), self)
                gate.positional = alike.setdefault(gate.positional, gate.positional)
                self.gates[path] = gate
                block.forward = gate
            self.attributes = Attributes(blocks.values())
        except BaseException:
            self.remove()  # a block may refuse, and a user may lose patience
            raise

    def watched(self, inside: bool) -> bool:
        """Whether something waits behind a module that unwinding would leave by an exception.

        Hooks of torch do, and what accelerate and diffusers put over a forward: they send weights
        away behind it.

        Arguments:
            inside: Whether the run began at the backbone's own forward: what is around that sees it return.
        """
        paths = {path[:at] for path in self.gates for at in _ends(path)}
        for path in paths - {""} if inside else paths:
            try:
                module = self._backbone.get_submodule(path)
            except AttributeError:  # cut off since; a forward that runs to the end tells
                continue
            forward = module.__dict__.get("forward")
            if module._forward_hooks or not (
                forward is None or isinstance(forward, Gate | ForwardOverride)
            ):
                return True
        return False

    @staticmethod
    def note(forms: set[object], form: object) -> None:
        """Notes that a forward of this form has ended; forms come and go, and few are kept."""
        if len(forms) >= 32:
            forms.clear()
        forms.add(form)

    def check_placed(self, uncalled: Iterable[Gate]) -> None:
        """Tells blocks that a call passed over from blocks that are no longer those of the plan.

        Arguments:
            uncalled: Gates that a call which ran to the end did not meet.

        Raises:
            PlanMismatchError: If the block of one of them was exchanged or cut off, or its forward
                replaced, since wrapping.
        """
        modules = None
        for gate in uncalled:
            modules = dict(self._backbone.named_modules()) if modules is None else modules
            path = gate.sites[0].call.path
            now = modules.get(path)
            if now is gate.block and (found(now, Gate) or reaches(vars(now).get("forward"), gate)):
                continue
            became = "is gone" if now is None else f"is another {type(now).__name__}"
            became = "has another forward" if now is gate.block else became
            raise PlanMismatchError(
                f"{type(self._backbone).__name__}: block {path!r} {became} since it was wrapped, so no "
                "row can leave there and its cost is unknown. Undo with ek.unwrap(model) before blocks "
                "are changed, and wrap the changed backbone again."
            )

    def compile(self, options: dict[str, Any]) -> None:
        """Compiles the blocks' own forwards."""
        for gate in self.gates.values():
            gate.compile(options)

    def remove(self) -> None:
        """Gives every block its own forward back; where that was interrupted, a second call ends it."""
        for gate in self.gates.values():
            restore(gate.block, gate, gate.replaced)
        self.gates = {}


def check_ungated(backbone: nn.Module) -> None:
    """Refuses a backbone that is wrapped already, or a part of which is.

    Arguments:
        backbone: The backbone.

    Raises:
        AlreadyWrappedError: If there is a gate in it.
    """
    for path, module in backbone.named_modules():
        if found(module, Gate):
            raise AlreadyWrappedError(
                f"{type(backbone).__name__}: block {path!r} ({type(module).__name__}) is wrapped "
                "already. Use that wrapped model, or undo it first with ek.unwrap(model)."
            )


def _ends(path: str) -> list[int]:
    """Where the dotted paths of a module and of all around it end, the outermost's at 0."""
    return [0, *(at for at, letter in enumerate(path) if letter == "."), len(path)]
