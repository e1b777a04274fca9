"""Follows the hidden state from block to block: by the identity of tensors, by name, by shape."""

from __future__ import annotations

import torch

from exitkit.surgery.dry_run import CallRecord, LeafRecord, moved
from exitkit.surgery.independence import MORE, ROWS
from exitkit.surgery.probe import Probe
from exitkit.surgery.residuals import Base, fitted_base
from exitkit.surgery.spec import Call


def describe_calls(seen: Probe, flat: list[int]) -> dict[int, Call]:
    """Describes the calls of all stages.

    Arguments:
        seen: The dry runs.
        flat: Indices of the calls, in execution order.

    Returns:
        The description of each call by its index.
    """
    calls = seen.base.calls
    inside, read_later = {flat[-1]}, set[int]()
    for i in range(flat[-1] + 1, len(calls)):
        if calls[i].parent in inside:  # of the last call itself, whose own parts read what it gives
            inside.add(i)
        else:
            read_later |= {leaf.token for leaf in calls[i].inputs.values()}
    hidden = _hidden_chain(
        [calls[i] for i in flat], [seen.perturbed.calls[i] for i in flat], read_later
    )
    chosen = [calls[i] for i in flat]
    return {
        i: _describe(seen, flat, at, *hidden[at], fitted_base(chosen, hidden, at))
        for at, i in enumerate(flat)
    }


def _hidden_chain(
    calls: list[CallRecord], perturbed: list[CallRecord], read_later: set[int]
) -> list[tuple[str | None, str | None]]:
    """Follows the hidden state: which input and which output of each call carries it."""
    name: str | None = None
    chain: list[tuple[str | None, str | None]] = []
    for at, (call, other) in enumerate(zip(calls, perturbed, strict=True)):
        inputs = [p for p, leaf in call.inputs.items() if moved(leaf, other.inputs[p])]
        outputs = [
            p
            for p, leaf in call.outputs.items()
            if leaf.dtype.is_floating_point and p in other.outputs and moved(leaf, other.outputs[p])
        ]
        # At the first block only the hidden state has seen the noisy input; its name stays.
        hidden_in = name if name in inputs else next(iter(_largest(call.inputs, inputs)), None)
        name = name or hidden_in
        if at + 1 == len(calls):
            outputs = _read_by_tail(call, outputs, hidden_in, read_later)
        usual = None
        if at and type(call.module) is type(calls[at - 1].module):
            before = calls[at - 1].outputs.get(chain[-1][1] or "")
            given = call.inputs.get(hidden_in or "")
            # Where something is added in between, another output may have been handed on as it is.
            if before is not None and given is not None and before.token == given.token:
                usual = chain[-1][1]
        made = _handed_on(call, outputs, calls, at, name)
        chain.append((hidden_in, made or _by_habit(call, outputs, hidden_in, usual)))
    return chain


def _read_by_tail(
    call: CallRecord, outputs: list[str], hidden_in: str | None, read_later: set[int]
) -> list[str]:
    """Of several outputs of the last call, those that the tail reads, as far as it shows.

    What the tail reshapes first is another tensor there: the hidden state is not given up for another
    output that is handed over as it is.
    """

    def fits(path: str) -> bool:
        return hidden_in is None or call.outputs[path].shape == call.inputs[hidden_in].shape

    read = [p for p in outputs if call.outputs[p].token in read_later]
    return outputs if any(map(fits, outputs)) and not any(map(fits, read)) else read or outputs


def _largest(leaves: dict[str, LeafRecord], paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda p: -torch.Size(leaves[p].shape).numel())


def _handed_on(
    call: CallRecord, outputs: list[str], calls: list[CallRecord], at: int, name: str | None
) -> str | None:
    """The output that the next call is given."""
    if at + 1 == len(calls):
        return None
    following = calls[at + 1].inputs
    for p in (name, *following):
        for out in outputs:
            if p in following and call.outputs[out].token == following[p].token:
                return out
    return None


def _by_habit(
    call: CallRecord, outputs: list[str], hidden_in: str | None, usual: str | None
) -> str | None:
    """The output by the place where the block before has it, or by the form of what came in."""
    if usual in outputs:
        return usual
    if hidden_in is not None:
        for out in outputs:
            if call.outputs[out].shape == call.inputs[hidden_in].shape:
                return out
    return outputs[0] if outputs else None


def _describe(
    seen: Probe,
    flat: list[int],
    at: int,
    hidden_in: str | None,
    hidden_out: str | None,
    base: Base | None,
) -> Call:
    calls, i = seen.base.calls, flat[at]
    record = calls[i]
    passes: list[tuple[str, str]] = []
    if (
        hidden_in is not None
        and hidden_out is not None
        and base is None
        and record.inputs[hidden_in].shape == record.outputs[hidden_out].shape
    ):
        passes.append((hidden_out, hidden_in))
    for out, leaf in record.outputs.items():
        if out == hidden_out:
            continue
        for name in _carriers(calls, flat, at, out):
            mine = record.inputs.get(name)
            if mine is not None and mine.shape == leaf.shape:
                passes.append((out, name))
                break
    back, scale = (None, 1.0) if base is None else base
    rows = tuple(
        name
        for name, length in record.lists.items()
        if length == ROWS and seen.other.calls[i].lists.get(name) == MORE
    )
    return Call(
        record.path,
        record.nth,
        seen.leaves(i, "inputs"),
        seen.leaves(i, "outputs"),
        hidden_in,
        hidden_out,
        tuple(passes),
        back,
        scale,
        lists=rows,
        skeleton=record.skeleton,
        in_place=_in_place(seen, record, hidden_in, hidden_out),
        other_lists=tuple(name for name in record.lists if name not in rows),
    )


def _in_place(
    seen: Probe, record: CallRecord, hidden_in: str | None, hidden_out: str | None
) -> bool:
    """Whether a call hands on the tensor that came in, which something changed in place."""
    if hidden_in is None or hidden_out is None:
        return False
    token = record.inputs[hidden_in].token
    return record.outputs[hidden_out].token == token and token in seen.base.written


def _carriers(calls: list[CallRecord], flat: list[int], at: int, out: str) -> list[str]:
    """Parameters that the next call of this chain receives this output by."""
    # The last call has no next one: it hands on what its predecessor of the same class did.
    here, following = (at, at + 1) if at + 1 < len(flat) else (at - 1, at)
    leaf = calls[flat[here]].outputs.get(out)
    if leaf is None:
        return []
    return [p for p, later in calls[flat[following]].inputs.items() if later.token == leaf.token]
