"""Outputs that the caller adds to an older hidden state: `x = x + scale * block(norm(x))`.

Between two calls it shows in the dry run: random projections add up as tensors do. Behind the last call
there is nobody whose input shows it, so two rows of an experiment do: the same change made once to the
hidden state and once to the output moves what follows alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exitkit.surgery.dry_run import CallRecord, LeafRecord
from exitkit.surgery.experiments import Experiment, Finding
from exitkit.surgery.read_graph import same_prediction
from exitkit.surgery.spec import Call

Base = tuple[int, float]
"""How many calls before this one the hidden state entered, and the factor of the output."""

_FURTHEST = 8  # calls between a hidden state and what is added to it
_EXACT = 1e-4  # relative rounding of projections


def fitted_base(
    calls: Sequence[CallRecord], hidden: Sequence[tuple[str | None, str | None]], at: int
) -> Base | None:
    """What the caller adds the output of a call to, by what enters the next call.

    Arguments:
        calls: The calls of all stages, in order.
        hidden: Paths of the hidden state in the arguments and the output of each.
        at: Which call; the last one does what the last one before it of its class did.

    Returns:
        The base, or None if nothing is added.
    """
    if at + 1 == len(calls):
        kind = type(calls[at].module)
        alike = [i for i in range(at) if type(calls[i].module) is kind]
        return fitted_base(calls, hidden, alike[-1]) if alike else None
    out = _leaf(calls[at].outputs, hidden[at][1])
    following = _leaf(calls[at + 1].inputs, hidden[at + 1][0])
    if out is None or following is None or following.token == out.token:
        return None
    for back in range(min(at, _FURTHEST) + 1):
        entered = _leaf(calls[at - back].inputs, hidden[at - back][0])
        if entered is None or len({x.shape for x in (entered, out, following)}) > 1:
            continue
        scale = _scale(entered, out, following)
        if scale is not None:
            return back, scale
    return None


def _leaf(leaves: dict[str, LeafRecord], path: str | None) -> LeafRecord | None:
    # The path of a plain tensor output is empty, so absence is None and nothing else.
    return None if path is None else leaves.get(path)


def _scale(entered: LeafRecord, out: LeafRecord, following: LeafRecord) -> float | None:
    """The factor with which the second added to the first gives the third, if there is one."""
    x, y, z = (_flat(leaf) for leaf in (entered, out, following))
    if x is None or y is None or z is None:
        return None
    scale = float((z - x) @ y / (y @ y).clamp(min=1e-30))
    simple = round(scale * 64) / 64
    if abs(scale - simple) < 10 * _EXACT:
        scale = simple
    allowed = _EXACT * float(z.abs().max())
    fits = torch.allclose(x + scale * y, z, rtol=_EXACT, atol=allowed)
    return scale if fits and abs(scale) > 1e-3 else None


def _flat(leaf: LeafRecord) -> Tensor | None:
    return None if leaf.prints is None else torch.cat([p.flatten() for p in leaf.prints]).double()


def hypotheses(calls: Sequence[Call], further: Sequence[Base] = ()) -> list[Base]:
    """What the output of the last call may be added to.

    Arguments:
        calls: The calls of all stages, in order.
        further: Hypotheses to test beside the usual ones.

    Returns:
        The distinct ones that can be tested, at most four.
    """
    end = calls[-1]
    known = [(end.base, end.scale)] if end.base is not None else []
    bases = [*known, *further, (0, 1.0)]
    shapes = {leaf.shape for leaf in end.outputs if leaf.path == end.hidden_out}

    def possible(back: int) -> bool:
        at = len(calls) - 1 - back
        call = calls[at] if at > 0 else None  # the first call's input is no stage's output
        return call is not None and shapes == {
            leaf.shape for leaf in call.inputs if leaf.path == call.hidden_in
        }

    return [base for base in dict.fromkeys(bases) if possible(base[0])][:4]


def experiments(bases: Sequence[Base]) -> list[Experiment]:
    """A row with each hidden state changed, and one with the output changed as each says."""
    backs = dict.fromkeys(back for back, _ in bases)
    return [
        *(Experiment(base=back) for back in backs),
        *(Experiment(base=back, scale=scale) for back, scale in bases),
    ]


def judged(
    bases: Sequence[Base], findings: Sequence[Finding], end: int
) -> tuple[Base | None, list[Base]] | None:
    """What the output of the last call is added to.

    Arguments:
        bases: The hypotheses.
        findings: What `experiments` of them have moved.
        end: The number that stands for the prediction among readers.

    Returns:
        The hypothesis that holds or None, and hypotheses to test next. None in place of both where
        nothing moves, so that nothing is known.
    """
    backs = list(dict.fromkeys(back for back, _ in bases))
    states = dict(zip(backs, findings, strict=False))
    further: list[Base] = []
    if not any(f.behind or end in f.readers for f in findings):
        return None
    for (back, scale), output in zip(bases, findings[len(backs) :], strict=True):
        state = states[back]
        if end in state.readers or end in output.readers:
            moved, alike = end in state.readers, same_prediction(state, output)
        else:
            moved, alike = state.behind, _same_arrival(state, output)
        if moved and alike:
            return (back, scale), []
        guess = _ratio(state, output)
        if moved and guess is not None:
            further.append((back, scale * guess))
    return None, [base for base in further if base not in bases]


def _same_arrival(first: Finding, second: Finding) -> bool:
    a, b = first.arrived, second.arrived
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= 1e-3 * a.abs().max())


def _ratio(state: Finding, output: Finding) -> float | None:
    """By how much more the output moved what follows than the hidden state did, if it is one factor."""
    a, b = state.arrived, output.arrived
    if a is None or b is None or a.shape != b.shape:
        return None
    a, b = a.double().flatten(), b.double().flatten()
    ratio = float(a @ b / (a @ a).clamp(min=1e-30))
    fits = bool((b - ratio * a).abs().max() <= 1e-3 * b.abs().max())
    return round(ratio, 6) if fits and abs(ratio) > 1e-3 else None


def with_base(call: Call, base: Base | None) -> Call:
    """A call with another base; a skipped one hands on zeros or what came in accordingly."""
    passes = tuple(pair for pair in call.passes if pair[0] != call.hidden_out)
    if base is not None:
        return replace(call, base=base[0], scale=base[1], passes=passes)
    shapes = {leaf.path: leaf.shape for leaf in (*call.inputs,)}
    own = next((leaf.shape for leaf in call.outputs if leaf.path == call.hidden_out), None)
    if call.hidden_in is not None and call.hidden_out is not None:
        if shapes.get(call.hidden_in) == own:
            passes = (*passes, (call.hidden_out, call.hidden_in))
    return replace(call, base=None, scale=1.0, passes=passes)
