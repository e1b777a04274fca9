"""What a reader needs to repeat a comparison, and what belongs to this machine alone."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from exitkit.evaluation.entries import Entry, Setup
from exitkit.evaluation.timing import Stopwatch
from exitkit.policies import Policy


def settings(
    entries: Sequence[Entry],
    bare: nn.Module,
    setup: Setup,
    features: nn.Module | None,
    reference: Tensor | None,
) -> dict[str, str]:
    """Facts that do not depend on the machine.

    Arguments:
        entries: The policies.
        bare: The bare full model.
        setup: What all rivals share.
        features: Feature space of the Frechet distance.
        reference: Real images of the Frechet distance; None for the full run's own.

    Returns:
        Facts by name, in words.
    """
    millions = sum(p.numel() for p in bare.parameters()) / 1e6
    seeds = setup.seeds
    facts = {
        "command": command(),
        "backbone": f"{type(bare).__name__}, {millions:.2f} M parameters",
        "sample shape": " × ".join(map(str, setup.shape)),
        "sampler": f"{', '.join(setup.samplers)}, {setup.steps} steps",
        "seeds": f"{len(seeds)}, {min(seeds)} to {max(seeds)}, in batches of {setup.batch_size}",
        "intervals": "95 %, percentile bootstrap over seeds, 2000 resamples",
        "opponents": "step counts, schedules and fixed exits are read from a pilot run of each "
        f"policy on {len(setup.pilot_seeds)} other seeds",
    }
    if features is not None:
        real = "the full run's own images" if reference is None else f"{len(reference)} real images"
        facts["Fréchet distance"] = f"features of {type(features).__name__}, to {real}"
    for entry in entries:
        policy = entry.acting
        if policy is not None:
            facts[f"policy of {entry.name}"] = in_words(policy)
            continue
        size = sum(p.numel() for p in entry.model.parameters()) / 1e6
        facts[f"network of {entry.name}"] = f"{type(entry.model).__name__}, {size:.2f} M parameters"
    return facts


def command() -> str:
    """The command line of this process, without the folders of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "-"
    started = ["-m", spec.name.removesuffix(".__main__")] if spec is not None else [script]
    return " ".join(["python", *started, *sys.argv[1:]])


def in_words(policy: Policy, most: int = 8) -> str:
    """A policy with the fields that are not defaults; long ones cut short.

    Arguments:
        policy: The policy.
        most: Entries of a field that are shown.

    Returns:
        The policy in one line.
    """
    parts = []
    for field in fields(policy):  # type: ignore[arg-type]
        value = getattr(policy, field.name)
        if value == field.default:
            continue
        text = repr(value)
        if isinstance(value, tuple) and len(value) > most:
            shown = ", ".join(map(repr, value[:most]))
            text = f"({shown}, … {len(value)} in all)"
        parts.append(f"{field.name}={text}")
    return f"{type(policy).__name__}({', '.join(parts)})"


def machine(watch: Stopwatch) -> dict[str, str]:
    """Facts that depend on the machine: the wall clock and what it was measured on.

    Arguments:
        watch: The measurements.

    Returns:
        Facts by name, in words.
    """
    share = watch.foreign_share
    others = "unknown" if share is None else f"{share:.0%} of it, in the median batch"
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} torch threads",
        "machine used by others": others,
        "wall clock": f"median over {len(watch.foreign)} batches of the ratio to the bare full "
        "model within the batch; each batch starts at another rival",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
