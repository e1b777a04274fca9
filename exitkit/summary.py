"""A wrapped model in words: its exits, what they cost, what trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from exitkit.config import ExitConfig
from exitkit.execution.exits import ExitLayout
from exitkit.heads import output_kind
from exitkit.policies import Policy


@dataclass(frozen=True)
class Exit:
    """One exit, for people.

    Attributes:
        index: Depth of a row that leaves here.
        path: Dotted path of the block before it.
        class_name: Class of that block.
        cost: Part of the full MACs spent when leaving here, output head included.
    """

    index: int
    path: str
    class_name: str
    cost: float


def describe_exits(layout: ExitLayout) -> list[Exit]:
    """Lists the exits in order.

    Arguments:
        layout: The wrapped model.

    Returns:
        One entry an exit; a carried exit's cost counts the blocks after its landing.
    """
    plan, out = layout.plan, []
    for p in layout.points:
        back = sum(s.macs for s in plan.stages if p.landing and s.index > p.landing)
        cost = p.boundary.share + (back + p.output_macs) / (plan.macs or 1.0)
        out.append(Exit(p.index, p.boundary.path, p.boundary.class_name, cost))
    return out


def count_parameters(backbone: nn.Module, heads: nn.Module, whole: bool) -> str:
    """How many parameters train, in PEFT's words.

    Arguments:
        backbone: The backbone.
        heads: The heads.
        whole: Whether the backbone trains too.

    Returns:
        One line.
    """
    own = sum(p.numel() for p in heads.parameters())
    everything = own + sum(p.numel() for p in backbone.parameters())
    train = everything if whole else own
    share = 100 * train / everything
    return f"trainable params: {train:,} || all params: {everything:,} || trainable%: {share:.4f}"


def summarise(layout: ExitLayout, config: ExitConfig, policy: Policy) -> str:
    """What is wrapped, where the exits are and what they cost.

    Arguments:
        layout: The wrapped model.
        config: Its config.
        policy: Its policy.

    Returns:
        A few lines.
    """
    plan = layout.plan
    lines = [
        f"{plan.class_name} with {len(layout.points)} exits of {plan.num_stages} stages, preset "
        f"{config.preset!r}, policy {policy}",
    ]
    for e, p in zip(describe_exits(layout), layout.points, strict=True):
        goes_on = f", resumes after stage {p.landing}" if p.landing else ", own prediction"
        lines.append(
            f"  exit {e.index}: {e.path} ({e.class_name}), cost {e.cost:.1%}"
            f"{'' if e.cost < 1 else ' (does not pay: the full network costs no more)'}, "
            f"{type(p.output).__name__}{goes_on}"
        )
    kind = output_kind(config.output.kind)
    if kind.through_tail and plan.mechanism == "attached":
        lines.append(
            f"  output heads are attached: hidden states change shape, so {kind.name!r} heads would find "
            "no tail to go through"
        )
    return "\n".join(lines)
