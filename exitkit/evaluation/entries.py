"""Who runs against whom in a comparison.

Every policy brings its own opponents. A pilot run on other seeds tells its cost and its depths, and
from those follow the bare model with as many sampler steps as that cost buys, the static schedule
that does at every timestep what the policy mostly did there, and, where exits keep no state, always
leaving at the exit of about that cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.evaluation.baselines import executed_macs
from exitkit.evaluation.rows import Kind
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import FixedExit, NeverExit, Policy, Schedule, TimestepSchedule
from exitkit.sampling.conditions import Conditions as Inputs
from exitkit.sampling.positions import sampler_from
from exitkit.sampling.sample import Sample

PILOT = 32
"""Seeds of a pilot run, none of which is used in the comparison."""


@dataclass(frozen=True)
class Entry:
    """A wrapped model with the policy to judge, or another network in its place.

    Attributes:
        name: What the report calls it.
        model: The wrapped model; or a network called as `model(x, t, **inputs)`, a classifier as
            `model(images)`.
        policy: The policy, the model's own if None. The model's own is put back afterwards.
        family: The curve it belongs to: entries of one method at several budgets share one. A curve
            of its own if None.
    """

    name: str
    model: nn.Module
    policy: Policy | None = None
    family: str | None = None

    @property
    def acting(self) -> Policy | None:
        """The policy; None for a network without exits."""
        if self.policy is None and isinstance(self.model, ExitModel):
            return self.model.policy
        return self.policy


@dataclass(frozen=True)
class Rival:
    """One row of the table, before it ran.

    Attributes:
        name: Unique among the rivals.
        kind: What it is.
        module: What is sampled from: a wrapped model, or the bare backbone.
        sampler: Name of the sampler.
        steps: Sampler steps.
        policy: Policy of a wrapped model.
        family: Curve of the entry it belongs to.
        at_equal_cost: Name of the "fewer steps" row to be compared with.
        cost: Executed MACs over the full run's, where no trace tells them.
    """

    name: str
    kind: Kind
    module: nn.Module
    sampler: str
    steps: int
    policy: Policy | None = None
    family: str = ""
    at_equal_cost: str | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Setup:
    """What all rivals share.

    Attributes:
        samplers: Schedulers by name.
        shape: Shape of one sample.
        steps: Sampler steps of all but "fewer steps".
        seeds: Seeds of the comparison.
        batch_size: Samples that run together.
        options: Further arguments of `generate`.
    """

    samplers: Mapping[str, Any]
    shape: tuple[int, ...]
    steps: int
    seeds: tuple[int, ...]
    batch_size: int
    options: Mapping[str, Any]

    @property
    def pilot_seeds(self) -> list[int]:
        """Seeds beyond all others."""
        start = max(self.seeds) + 1
        return list(range(start, start + min(PILOT, self.batch_size)))

    def options_from(self, first: int) -> dict[str, Any]:
        """Further arguments of `generate`, with the conditioning of the samples from a row on."""
        options = dict(self.options)
        for name in ("inputs", "negative_inputs"):
            options[name] = rows_of(options.get(name), first)
        return options

    def run(self, rival: Rival, seeds: Sequence[int], first: int = 0) -> Sample:
        """Samples from a rival, all seeds in one batch.

        Arguments:
            rival: The rival.
            seeds: The seeds.
            first: Row of the conditioning that belongs to the first seed.

        Returns:
            The samples.
        """
        with acting(rival.module, rival.policy):
            options = {
                "steps": rival.steps,
                "seeds": list(seeds),
                "batch_size": len(seeds),
                **self.options_from(first),
            }
            sampler, named = sampler_from(self.samplers[rival.sampler], self.shape, options)
            return sampler.run(rival.module, named)


def rows_of(inputs: Inputs | None, first: int) -> Inputs | None:
    """Conditioning of the samples from a row on, as a function that `generate` takes."""
    if inputs is None:
        return None

    def pick(value: Any, rows: Tensor) -> Any:
        if isinstance(value, Mapping):
            return {key: pick(entry, rows) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(pick(entry, rows) for entry in value)
        whole = not isinstance(value, Tensor) or value.ndim == 0
        return value if whole else value[rows.to(value.device)]

    def select(rows: Tensor) -> Mapping[str, Any]:
        rows = rows + first
        given: Mapping[str, Any] = inputs(rows) if callable(inputs) else pick(inputs, rows)
        return given

    return select


@contextmanager
def acting(module: nn.Module, policy: Policy | None) -> Iterator[None]:
    """Gives a wrapped model a policy for a while."""
    if policy is None or not isinstance(module, ExitModel):
        yield
        return
    own, module.policy = module.policy, policy
    try:
        yield
    finally:
        module.policy = own


def line_up(
    entries: Sequence[Entry],
    bare: nn.Module,
    setup: Setup,
    *,
    fewer_steps: bool | Sequence[int] = True,
    static: bool | Collection[str] = True,
) -> list[Rival]:
    """Lists all rivals: the full model first, then each policy with its opponents.

    Arguments:
        entries: The policies.
        bare: The bare full model.
        setup: What all rivals share.
        fewer_steps: Whether policies meet fewer steps at their cost; or further step counts.
        static: Whether policies meet their static schedule and a fixed exit; or the names of those
            that meet their schedule, while all meet a fixed exit.

    Returns:
        The rivals, with unique names.

    Raises:
        ConfigError: If an entry's model is not wrapped.
    """
    rivals: list[Rival] = []
    seen: set[tuple[int, Policy | None, str]] = set()
    for sampler in setup.samplers:
        # With one sampler its name in every row would only be noise.
        suffix = f", {sampler}" if len(setup.samplers) > 1 else ""
        rivals.append(Rival(f"full{suffix}", "full", bare, sampler, setup.steps))
        extra = [] if isinstance(fewer_steps, bool) else list(fewer_steps)
        fewer = {n: f"fewer steps ({n}){suffix}" for n in extra}
        for entry in entries:
            own = _own(entry, bare, sampler, suffix, setup, static)
            bought = max(1, round((own[0].cost or 1.0) * setup.steps))
            equal = None
            if fewer_steps is not False and bought < setup.steps:
                equal = fewer.setdefault(bought, f"fewer steps ({bought}){suffix}")
            for rival in own:
                # Policies on one model share its static exits and its run without exits.
                shared = rival.kind in ("no exit", "fixed exit")
                known = (id(rival.module), rival.policy, sampler)
                if shared and known in seen:
                    continue
                seen.add(known)
                equals = None if rival.kind == "no exit" else equal
                rivals.append(replace(rival, at_equal_cost=equals))
        rivals += [
            Rival(name, "fewer steps", bare, sampler, count)
            for count, name in sorted(fewer.items(), reverse=True)
        ]
    return rivals


def _own(
    entry: Entry,
    bare: nn.Module,
    sampler: str,
    suffix: str,
    setup: Setup,
    static: bool | Collection[str],
) -> list[Rival]:
    """The rivals that an entry brings, itself first; `cost` is that of its pilot run."""
    name, steps, family = entry.name + suffix, setup.steps, entry.family or entry.name
    if not isinstance(entry.model, ExitModel):
        if entry.policy is not None:
            raise ConfigError(f"compare: {entry.name!r} is no wrapped model; use wrap first.")
        network = Rival(name, "network", entry.model, sampler, steps, None, family)
        full = Rival("", "full", bare, sampler, steps)
        one = setup.pilot_seeds[:1]
        macs = [executed_macs(partial(setup.run, rival, one)) for rival in (network, full)]
        return [replace(network, cost=macs[0] / macs[1])]
    acting = entry.acting
    assert acting is not None
    policy = Rival(name, "policy", entry.model, sampler, steps, acting, family)
    trace = setup.run(policy, setup.pilot_seeds).trace
    assert trace is not None
    kinds: list[tuple[Kind, str, Policy]] = [("policy", "", acting)]
    if static is not False:
        kinds += _static(entry.model, acting, trace, static is True or entry.name in static)
    if entry.model.exit_config.loss.train_backbone:
        # How far fine-tuning alone moved the images; it runs in full, so no steps rival it.
        kinds.append(("no exit", ", no exit", NeverExit()))
    return [
        Rival(name + tail, kind, entry.model, sampler, steps, p, family, None, trace.cost)
        for kind, tail, p in kinds
    ]


def _static(
    model: ExitModel, policy: Policy, trace: Trace, scheduled: bool
) -> list[tuple[Kind, str, Policy]]:
    """The static opponents of a policy that sometimes leaves and is not static itself."""
    moves = bool((trace.depth <= trace.exits).any())
    if not moves or isinstance(policy, Schedule):
        return []
    found: list[tuple[Kind, str, Policy]] = []
    if scheduled:
        found.append(("mode schedule", ", its schedule", TimestepSchedule.from_trace(trace)))
    # A carried exit leans on full steps, so that one exit at every step is no policy of it.
    if not model.heads.kind.needs_trajectory:
        costs = [exit.cost for exit in model.exits]
        nearest = min(range(len(costs)), key=lambda i: abs(costs[i] - trace.cost)) + 1
        found.append(("fixed exit", f", always exit {nearest}", FixedExit(nearest)))
    return found
