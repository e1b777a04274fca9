"""What a reader needs to repeat a comparison, and what belongs to this machine alone."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from exitkit.evaluation.entries import Entry
from exitkit.evaluation.timing import Stopwatch
from exitkit.policies import Policy


def of_entries(entries: Sequence[Entry]) -> dict[str, str]:
    """What each entry runs: its policy, or its network.

    Arguments:
        entries: The entries.

    Returns:
        Facts by name, in words.
    """
    found = {}
    for entry in entries:
        policy = entry.acting
        if policy is not None:
            found[f"policy of {entry.name}"] = in_words(policy)
        else:
            network = f"{name_of(entry.model)}, {parameters(entry.model)}"
            found[f"network of {entry.name}"] = network
    return found


def name_of(module: nn.Module) -> str:
    """The class of a network, or those of several."""
    parts = module.values() if isinstance(module, nn.ModuleDict) else [module]
    return " and ".join(dict.fromkeys(type(part).__name__ for part in parts))


def parameters(module: nn.Module) -> str:
    """The number of parameters of a module, in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"


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
