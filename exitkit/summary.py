"""A wrapped model in words: its exits, what they cost, what trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exitkit.config import ExitConfig
from exitkit.execution.executor import Executor
from exitkit.execution.exits import ExitLayout
from exitkit.execution.trajectory import Trajectory
from exitkit.heads import output_kind
from exitkit.modes.flags import evaluating
from exitkit.policies import ExitRule, FixedExit, NeverExit, Policy, Signals
from exitkit.surgery.inputs import Inputs


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


@dataclass(frozen=True)
class ExitTimes:
    """Seconds of forwards on an example; of each kind the shortest of some.

    Attributes:
        full: The backbone by itself.
        look: What a rule adds at one exit that reads the uncertainty there.
        leaving: A forward in which all rows leave, by exit.
    """

    full: float
    look: float
    leaving: tuple[float, ...]

    def verdict(self, exit: int) -> str:
        """What leaving at an exit saves, heads and gates included.

        Arguments:
            exit: The exit, 1..K.
        """
        spent = self.leaving[exit - 1]
        looked = spent + exit * self.look
        if spent >= self.full:
            return f"does not pay: {_ms(spent)} where the full network takes {_ms(self.full)}"
        if looked >= self.full:
            return (
                f"pays under a schedule alone: {_ms(spent)} of {_ms(self.full)}, with a look at every "
                f"exit up to here {_ms(looked)}"
            )
        return f"saves {1 - looked / self.full:.0%} of {_ms(self.full)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


@dataclass(frozen=True)
class _Look(ExitRule):
    """Reads every uncertainty and lets nobody leave."""

    name: ClassVar[str] = "look"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty"})

    def decide(self, signals: Signals) -> Tensor:
        return signals.uncertainty_map().flatten(1).mean(dim=1) < 0


def time_exits(
    backbone: nn.Module, executor: Executor, example_inputs: Any, rounds: int = 5
) -> ExitTimes:
    """Times the full network, a look at the exits and leaving at each of them, in turns.

    Arguments:
        backbone: The backbone.
        executor: Runs it.
        example_inputs: As for `wrap`.
        rounds: Calls of each kind; one more comes before them.

    Returns:
        The shortest times.
    """
    inputs = Inputs.of(example_inputs)
    args, kwargs = inputs.args, inputs.kwargs
    exits = len(executor.layout.points)
    # Carried exits complete rows from a full step, which each round begins with.
    trajectory = Trajectory() if any(p.carried for p in executor.layout.points) else None

    def run(policy: Policy) -> Any:
        if trajectory is not None:
            trajectory.next_step()
        return executor.run(backbone, args, kwargs, policy, trajectory)[0]

    kinds: list[Callable[[], Any]] = [
        lambda: backbone(*args, **kwargs),
        lambda: run(NeverExit()),
        lambda: run(_Look()),
        *(lambda depth=k + 1: run(FixedExit(depth)) for k in range(exits)),
    ]
    best = [float("inf")] * len(kinds)
    heads = executor.layout.heads
    with evaluating(backbone), torch.no_grad(), heads.regarded_as_fitted():
        for number in range(rounds + 1):
            for at, call in enumerate(kinds):
                begun = time.perf_counter()
                executor.reader.prediction(call()).flatten()[:1].tolist()  # waits for the device
                if number:
                    best[at] = min(best[at], time.perf_counter() - begun)
    full, never, look, *leaving = best
    return ExitTimes(full, max(0.0, look - never) / max(1, exits), tuple(leaving))


def count_parameters(backbone: nn.Module, heads: nn.Module, whole: bool) -> str:
    """How many parameters train, in PEFT's words.

    Arguments:
        backbone: The backbone.
        heads: The heads.
        whole: Whether the backbone trains too.

    Returns:
        One line; frozen parameters (`requires_grad_(False)`) are none that train.
    """
    own, others = [*heads.parameters()], [*backbone.parameters()]
    everything = sum(p.numel() for p in (*own, *others))
    train = sum(p.numel() for p in (*own, *(others if whole else ())) if p.requires_grad)
    share = 100 * train / everything
    return f"trainable params: {train:,} || all params: {everything:,} || trainable%: {share:.4f}"


def summarise(
    layout: ExitLayout, config: ExitConfig, policy: Policy, times: ExitTimes | None = None
) -> str:
    """What is wrapped, where the exits are and what they cost.

    Arguments:
        layout: The wrapped model.
        config: Its config.
        policy: Its policy.
        times: What its exits take, or None where nobody has measured it.

    Returns:
        A few lines.
    """
    plan = layout.plan
    completion = layout.heads.completion
    lines = [
        f"{plan.class_name} with {len(layout.points)} exits of {plan.num_stages} stages, preset "
        f"{config.preset!r}, policy {policy}",
    ]
    if completion is not None:
        share = layout.completion_macs / (plan.macs or 1.0)
        lines.append(
            f"  depth 0: a step without the backbone, cost {share:.2%}, the {completion.forecast_of} a line "
            f"in {completion.along.replace('_', '-')}; its scalars are "
            f"{'' if layout.heads.is_fitted else 'not '}solved"
        )
    for e, p in zip(describe_exits(layout), layout.points, strict=True):
        goes_on = f", resumes after stage {p.landing}" if p.landing else ", own prediction"
        lines.append(
            f"  exit {e.index}: {e.path} ({e.class_name}), cost {e.cost:.1%}"
            f"{'' if e.cost < 1 else ' (does not pay: the full network costs no more)'}, "
            f"{type(p.output).__name__}{goes_on}"
            f"{'' if times is None else '; measured: ' + times.verdict(e.index)}"
        )
    kind = output_kind(config.output.kind)
    if kind.through_tail and plan.mechanism == "attached":
        lines.append(
            f"  output heads are attached: hidden states change shape, so {kind.name!r} heads would find "
            "no tail to go through"
        )
    return "\n".join(lines)
