"""One forward of equal rows in each of which other stages' outputs are changed.

Rows do not see each other, so a batch of equal rows holds one experiment a row. Row 0 is left as it is.
In every other row, what the stages give is put back to what row 0 has, but for the outputs that the
experiment changes. What then differs from row 0 in front of a stage, or in the prediction, has come
there from a changed output past all stages in between. A last row without any change tells whether the
forward draws numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from exitkit.surgery.example_batch import Change
from exitkit.surgery.experiments import Experiment, Finding, Subject
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.reads import Source
from exitkit.surgery.row_views import Place, RowViews, differing
from exitkit.surgery.spec import Call, Leaf
from exitkit.surgery.zero_weights import inside, zeros_filled
from exitkit.tree import copied, leaves, substitute

_FACTOR = 1.3


class CodedForward:
    """One forward with an experiment in each row.

    Arguments:
        subject: What is experimented on.
        experiments: One for each row behind row 0.
        change: How outputs are changed.
        control: Whether a last row is left unchanged, to find out about forwards that draw numbers.
        reference: For backbones without a batch axis, see `RowViews`; then `experiments` holds one
            experiment, or none for the reference's own forward.

    Attributes:
        findings: What each experiment has moved.
        draws: Whether unchanged rows differ.
    """

    def __init__(
        self,
        subject: Subject,
        experiments: Sequence[Experiment],
        change: Change = "noise",
        control: bool = False,
        reference: dict[Place, Tensor] | None = None,
    ) -> None:
        self._subject, self._experiments, self._change = subject, experiments, change
        self._control = 1 + len(experiments) if control else None
        count = 1 + len(experiments) + control
        self._donor = count if change == "exchange" else None
        self._batch = count + (self._donor is not None)
        self._views = RowViews(self._batch, reference)
        self._whole = reference is not None
        self.findings = [Finding() for _ in experiments]
        self.draws = False
        stage_of = [(n, call) for n, calls in enumerate(subject.stages, 1) for call in calls]
        self._at = {
            (call.path, call.nth): (i, *at) for i, at in enumerate(stage_of) for call in at[1:]
        }
        self._last = len(stage_of) - 1
        self._ends = {id(calls[-1]) for calls in subject.stages}
        self._counts: dict[str, int] = {}
        self._bases = {i - c.base for i, c in enumerate(subject.calls) if c.base is not None}
        self._tried = {self._last - e.base for e in experiments if e.base is not None}
        self._entered: dict[int, Tensor] = {}
        self._came: dict[int, Tensor] = {}
        self._noise: dict[tuple[object, ...], Tensor] = {}

    def run(self) -> None:
        """Runs the backbone.

        Raises:
            Exception: Whatever the backbone raises on changed values.
        """
        batch = self._subject.batch
        if self._whole:
            inputs = batch.bound.replaced({})
        else:
            inputs = batch.chosen([0] * (self._batch - 1) + [0 if self._donor is None else 1])
        # A forward may take entries out of a list.
        args, kwargs = Bound(copied(inputs.values), inputs.signature).split()
        torch.manual_seed(0)
        stages = {call.path for call in self._subject.calls}
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(zeros_filled(self._subject.model, stages))
            for path, module in self._subject.model.named_modules():
                if path in stages:
                    self._watch(stack, path, module)
                elif next(module.children(), None) is None and not inside(path, stages):
                    enter = module.register_forward_pre_hook(self._behind, with_kwargs=True)
                    stack.callback(enter.remove)
            output = self._subject.model(*args, **kwargs)
        self._finish(output)

    def _watch(self, stack: ExitStack, path: str, module: nn.Module) -> None:
        enter = module.register_forward_pre_hook(
            lambda m, a, k: self._enter(path, m, a, k), with_kwargs=True
        )
        leave = module.register_forward_hook(
            lambda m, a, k, out: self._leave(path, out), with_kwargs=True
        )
        stack.callback(enter.remove)
        stack.callback(leave.remove)

    # in front of calls

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        at = self._at.get((path, self._counts.get(path, 0)))
        if at is None:
            return
        index, stage, call = at
        tensors = dict(bind(signature_of(module.forward), args, kwargs).tensors())
        for leaf in call.inputs:
            tensor = tensors.get(leaf.path)
            if tensor is None or leaf.axis is None or not tensor.is_floating_point():
                continue
            rows = self._views.split(tensor, leaf, (index, "in", leaf.path))
            self._note(rows, stage)
            if leaf.path == call.hidden_in and index in self._bases:
                self._entered[index] = rows.clone() if call.in_place else rows
            if leaf.path == call.hidden_in and index in self._tried:
                # As it enters: a block may write into it.
                self._came[index] = rows - rows[:1]

    def _note(self, rows: Tensor, reader: int) -> None:
        differs = differing(rows).tolist()
        if self._control is not None and differs[self._control]:
            self.draws = True
        for finding, experiment, yes in zip(
            self.findings, self._experiments, differs[1:], strict=False
        ):
            before = any(stage < reader for stage, _ in experiment.sources)
            if yes and (before or experiment.base is not None):
                finding.readers.add(reader)

    def _behind(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Looks at what enters modules behind the last stage: a last layer of zeros hides all."""
        if self._counts.get(self._subject.calls[-1].path, 0) <= self._subject.calls[-1].nth:
            return
        for i, (_, tensor) in enumerate(leaves((args, kwargs))):
            axis = self._subject.prediction.axis or 0
            if self._whole or tensor.ndim <= axis or tensor.shape[axis] % self._batch:
                continue
            if not tensor.is_floating_point() or not tensor.shape[axis]:
                continue
            leaf = Leaf("", tuple(tensor.shape), "", axis)
            rows = self._views.split(tensor, leaf, (-1, "in", str(i)))
            for row, (finding, yes) in enumerate(
                zip(self.findings, differing(rows).tolist()[1:], strict=False), 1
            ):
                finding.behind |= yes
                if finding.arrived is None:
                    finding.arrived = rows[row] - rows[0]

    # behind calls

    def _leave(self, path: str, out: Any) -> Any:
        nth = self._counts.get(path, 0)
        self._counts[path] = nth + 1
        at = self._at.get((path, nth))
        if at is None:
            return None
        index, stage, call = at
        known = dict(leaves(out))
        new: dict[str, Tensor] = {}
        for leaf in call.outputs:
            tensor = known.get(leaf.path)
            if tensor is None or leaf.axis is None or leaf.listed or not tensor.is_floating_point():
                continue
            rows = self._views.split(tensor, leaf, (index, "out", leaf.path))
            if len(rows) == 1:
                continue  # the reference's own forward
            values = self._values(index, stage, call, leaf, rows)
            joined = self._views.joined(values.to(tensor.dtype), tensor, leaf)
            # The caller may hold on to the argument, and drop what the block returns.
            in_place = call.in_place and leaf.path == call.hidden_out
            new[leaf.path] = tensor.copy_(joined) if in_place else joined
        return substitute(out, new)

    def _values(self, index: int, stage: int, call: Call, leaf: Leaf, rows: Tensor) -> Tensor:
        """What a call gives in each row."""
        hidden = leaf.path == call.hidden_out
        base: Tensor | None = None
        if hidden and call.base is not None:
            base = self._entered[index - call.base]
        stream = rows if base is None else base + call.scale * rows
        put = stream[:1].repeat(len(rows), *[1] * (rows.ndim - 1))
        last = id(call) in self._ends
        part: Source = (stage, "hidden" if hidden and last else "rest" if last else "inner")
        for row, experiment in enumerate(self._experiments, 1):
            weight = experiment.sources.get(part, 0.0)
            if weight and self._subject.changeable(call, leaf):
                put[row] += weight * self._delta(
                    stream, None if experiment.alike else (part, leaf.path)
                )
            if experiment.base is not None and experiment.scale is None and hidden:
                if index == self._last - experiment.base - 1:
                    put[row] += self._delta(stream, None)
        values = put if base is None else (put - base) / call.scale
        values[0] = rows[0]  # exactly
        if self._donor is not None:
            values[self._donor] = rows[self._donor]
        for row, experiment in enumerate(self._experiments, 1):
            if experiment.base is None or index < self._last - experiment.base:
                continue
            values[row] = rows[0]  # the bare output, whatever it is added to
            if index == self._last and experiment.scale is not None and hidden:
                changed = self._partner(experiment.base)
                values[row] += self._came[index - experiment.base][changed] / experiment.scale
        return values

    def _partner(self, base: int) -> int:
        """The row in which the hidden state itself is changed."""
        return 1 + next(
            i for i, e in enumerate(self._experiments) if e.base == base and e.scale is None
        )

    def _delta(self, stream: Tensor, key: object) -> Tensor:
        """By what a row is changed; the same for all tensors of a shape where there is no key."""
        first = stream[0]
        if self._change == "scale":
            return first * (_FACTOR - 1)
        if self._donor is not None:
            return stream[self._donor] - first
        named = (tuple(first.shape), key)
        if named not in self._noise:
            generator = torch.Generator().manual_seed(crc32(repr(named).encode()))
            noise = torch.randn(first.shape, generator=generator).to(first.device)
            self._noise[named] = noise * (first.float().std(correction=0) + 1e-3)
        return self._noise[named].to(first.dtype)

    # the end

    def _finish(self, output: Any) -> None:
        known, leaf = dict(leaves(output)), self._subject.prediction
        if leaf.listed:
            rows = torch.stack([known[f"{leaf.path}[{row}]"] for row in range(self._batch)])
        else:
            rows = self._views.split(known[leaf.path], leaf, (-1, "out", leaf.path))
        if not bool(rows.isfinite().all()):
            raise ValueError("the prediction is not finite where a hidden state was changed")
        self._note(rows, self._subject.depth + 1)
        for row, finding in enumerate(self.findings, 1):
            finding.prediction = rows[row]
