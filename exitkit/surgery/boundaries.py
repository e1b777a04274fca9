"""The points behind the stages: what heads see there, and where a row that leaves may go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from exitkit.surgery.another_size import hidden_leaf
from exitkit.surgery.evidence import Evidence
from exitkit.surgery.hidden_layout import hidden_spec
from exitkit.surgery.reads import Reads
from exitkit.surgery.spec import Boundary, HiddenSpec, Leaf, Stage


def find_boundaries(
    stages: Sequence[Stage],
    modules: Sequence[nn.Module],
    macs: float,
    evidence: Evidence,
    larger: Mapping[int, tuple[int, ...]],
) -> tuple[Boundary, ...]:
    """Describes the boundaries of a backbone.

    Arguments:
        stages: Its stages.
        modules: The module at the end of each.
        macs: MACs of one full forward of one row.
        evidence: What experiments have shown of the stages.
        larger: Shape of a row behind a stage with a larger input, where that was tried.

    Returns:
        One boundary for each stage, in order.
    """
    last = hidden_leaf(stages[-1])
    spent = macs - sum(s.macs for s in stages)
    out: list[Boundary] = []
    for stage, module in zip(stages, modules, strict=True):
        spent += stage.macs
        leaf = hidden_leaf(stage)
        if leaf is None:
            reason, leaf = "its output does not move with the noisy input", Leaf("", (), "")
        elif leaf.axis is None:
            reason = "its hidden state has no batch axis"
        elif stage.index == len(stages):
            reason = "the end of the network"
        else:
            reason = ""
        out.append(
            Boundary(
                stage=stage.index,
                path=stage.path,
                class_name=stage.class_name,
                leaf=leaf,
                hidden=hidden_spec(leaf, module, larger.get(stage.index))
                if leaf.shape
                else HiddenSpec((1,), 0),
                lands=last is not None and leaf.shape == last.shape and leaf.axis == last.axis,
                mirror=None,
                share=spent / macs if macs else stage.index / len(stages),
                usable=not reason,
                reason=reason or "repeated unit on the noisy path",
            )
        )
    # What fits the end by shape alone is no place to land from: a UNet's first level fits its last.
    for n in range(len(out) - 1, 0, -1):
        if not out[n].lands:
            out[:n] = [replace(b, lands=False) for b in out[:n]]
            break
    if evidence.reads is None:
        return tuple(replace(b, no_resume=evidence.view) for b in out)
    return tuple(_resuming(b, evidence.reads) for b in out)


def _resuming(b: Boundary, reads: Reads) -> Boundary:
    """Decides where rows of a boundary go on, by what later stages read."""
    end = reads.depth
    completes, mirror = reads.resumes(b.stage, end), reads.mirror(b.stage)
    lands = b.lands and completes
    if lands or (mirror is None and completes):
        resume: int | None = end
    else:
        resume = None if mirror is None else mirror - 1
    reason = "" if resume is not None else _why(reads, b.stage)
    return replace(
        b, lands=lands, completes=completes, mirror=mirror, resume=resume, no_resume=reason
    )


def _why(reads: Reads, exit_at: int) -> str:
    """Why no single hidden state takes the place of the stages behind an exit."""
    end = reads.depth
    if (end, "hidden") not in reads.moving():
        return f"the output does not move with the hidden state behind stage {end}"
    passed = sorted(set().union(*reads.missing(exit_at, end).values()))
    return (
        f"the tail reads what stage{'s' * (len(passed) > 1)} {', '.join(map(str, passed))} "
        "gave beside the hidden state at the end"
    )
