"""Follows the hidden state from block to block: by the identity of tensors, by name, by shape."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from exitkit.surgery.dry_run import CallRecord, LeafRecord, moved
from exitkit.surgery.independence import MORE, ROWS
from exitkit.surgery.probe import Probe
from exitkit.surgery.spec import Call, HiddenSpec, Leaf


def describe_calls(seen: Probe, flat: list[int]) -> dict[int, Call]:
    """Describes the calls of all stages.

    Arguments:
        seen: The dry runs.
        flat: Indices of the calls, in execution order.

    Returns:
        The description of each call by its index.
    """
    calls = seen.base.calls
    read_later = {leaf.token for c in calls[flat[-1] + 1 :] for leaf in c.inputs.values()}
    hidden = _hidden_chain(
        [calls[i] for i in flat], [seen.perturbed.calls[i] for i in flat], read_later
    )
    return {
        i: _describe(seen, flat, at, *hidden[at], _residual(calls, flat, at, hidden))
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
            # Of several streams the tail may read some alone.
            outputs = [p for p in outputs if call.outputs[p].token in read_later] or outputs
        chain.append((hidden_in, _hidden_out(call, outputs, hidden_in, calls, at, name)))
    return chain


def _largest(leaves: dict[str, LeafRecord], paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda p: -torch.Size(leaves[p].shape).numel())


def _hidden_out(
    call: CallRecord,
    outputs: list[str],
    hidden_in: str | None,
    calls: list[CallRecord],
    at: int,
    name: str | None,
) -> str | None:
    if at + 1 < len(calls):
        following = calls[at + 1].inputs
        order = [p for p in (name, *following) if p in following]
        for p in order:
            for out in outputs:
                if call.outputs[out].token == following[p].token:
                    return out
    if hidden_in is not None:
        for out in outputs:
            if call.outputs[out].shape == call.inputs[hidden_in].shape:
                return out
    return outputs[0] if outputs else None


def _residual(
    calls: list[CallRecord], flat: list[int], at: int, hidden: list[tuple[str | None, str | None]]
) -> bool:
    """Whether the caller adds this call's output to its input: projections add up, being linear."""
    if at + 1 == len(flat):
        same = at > 0 and type(calls[flat[at]].module) is type(calls[flat[at - 1]].module)
        return same and _residual(calls, flat, at - 1, hidden)
    here, following = calls[flat[at]], calls[flat[at + 1]]
    (name_in, name_out), (next_in, _) = hidden[at], hidden[at + 1]
    # The path of a plain tensor output is empty, so absence is None and nothing else.
    if name_in is None or name_out is None or next_in is None:
        return False
    parts = (here.inputs[name_in], here.outputs[name_out], following.inputs[next_in])
    if len({part.shape for part in parts}) > 1 or any(not part.prints for part in parts):
        return False
    if parts[2].token == parts[1].token:
        return False
    x, y, z = (part.prints[0] for part in parts if part.prints)
    return bool(torch.allclose(x + y, z, rtol=1e-4, atol=1e-4 * float(z.abs().max())))


def _describe(
    seen: Probe,
    flat: list[int],
    at: int,
    hidden_in: str | None,
    hidden_out: str | None,
    residual: bool,
) -> Call:
    calls, i = seen.base.calls, flat[at]
    record = calls[i]
    passes: list[tuple[str, str]] = []
    if (
        hidden_in is not None
        and hidden_out is not None
        and not residual
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
        residual,
        rows,
        record.skeleton,
        _in_place(seen, record, hidden_in, hidden_out),
        tuple(name for name in record.lists if name not in rows),
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


def hidden_spec(leaf: Leaf, module: nn.Module) -> HiddenSpec:
    """The hidden state as heads see it: rows first, folded tokens merged, folded images as frames.

    Arguments:
        leaf: The hidden state, batch of two.
        module: The block, whose parameter shapes tell where the channels are.

    Returns:
        Shape and channel axis without the batch.
    """
    shape = leaf.shape[1:] if leaf.axis is None else leaf.row
    if not shape:
        return HiddenSpec((1,), 0)
    if len(shape) == 3 and shape[0] != shape[1] == shape[2]:
        channel = 0
    elif len(shape) == 3 and shape[0] == shape[1] != shape[2]:
        channel = 2
    elif len(shape) == 3:
        # Kernel sizes stand behind the first two axes of a weight, and a 1 says nothing.
        votes = Counter(size for p in module.parameters() for size in p.shape[:2] if size > 1)
        channel = 0 if votes[shape[0]] >= votes[shape[-1]] else 2
    else:
        channel = len(shape) - 1
    if leaf.whole:
        return HiddenSpec(shape, channel)
    if leaf.fold > 1 and len(shape) == 3:
        frames = (shape[0], leaf.fold, *shape[1:]) if channel == 0 else (leaf.fold, *shape)
        return HiddenSpec(frames, 0 if channel == 0 else 3)
    if leaf.fold > 1:
        # Frames and the like: one row's entries become one longer sequence of channel vectors.
        rest = [s for a, s in enumerate(shape) if a != channel]
        length = leaf.fold
        for size in rest:
            length *= size
        return HiddenSpec((length, shape[channel]), 1)
    return HiddenSpec(shape, channel)
