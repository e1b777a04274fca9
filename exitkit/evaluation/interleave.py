"""The runs of a comparison: all rivals take turns, batch by batch, in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from exitkit.evaluation.entries import Rival, Setup
from exitkit.evaluation.timing import Stopwatch, foreign_share, machine_times, now, rotated
from exitkit.execution.trace import Trace


@dataclass
class Outcome:
    """What a rival brought back, batch by batch; traces only from wrapped models."""

    images: list[Tensor] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)


def take_turns(
    rivals: Sequence[Rival], setup: Setup, progress: bool
) -> tuple[dict[str, Outcome], Stopwatch]:
    """Runs all rivals batch by batch, each batch starting at another one.

    Arguments:
        rivals: The rivals.
        setup: What they share.
        progress: Whether to show a progress bar.

    Returns:
        What each brought back, in the order of seeds, and the seconds of each batch.
    """
    outcomes = {rival.name: Outcome() for rival in rivals}
    named = {rival.name: rival for rival in rivals}
    watch = Stopwatch()
    size = setup.batch_size
    # The last batch is shorter if need be, and then so for every rival.
    batches = [setup.seeds[i : i + size] for i in range(0, len(setup.seeds), size)]
    setup.run(rivals[0], setup.pilot_seeds[:2])
    total = math.fsum(rival.steps for rival in rivals) * len(batches)
    with tqdm(total=int(total), desc="compare", unit="step", disable=not progress) as bar:
        for turn, seeds in enumerate(batches):
            before = machine_times()
            for name in rotated(list(named), turn):
                bar.set_postfix_str(name)
                start = now()
                sample = setup.run(named[name], seeds, turn * size)
                watch.seconds.setdefault(name, []).append(now() - start)
                outcomes[name].images.append(sample.samples.detach().float().cpu())
                if named[name].policy is not None and sample.trace is not None:
                    outcomes[name].traces.append(sample.trace)
                bar.update(named[name].steps)
            watch.foreign.append(foreign_share(before, machine_times()))
    return outcomes, watch


def joined(images: Sequence[Tensor]) -> Tensor:
    """All batches of one rival, (n, *shape)."""
    return torch.cat(list(images))
