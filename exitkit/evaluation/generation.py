"""Comparisons of generated samples: the same seeds through one sampler or several.

Every policy brings its own opponents. A pilot run on other seeds tells its cost and its depths, and
from those follow the bare model with as many sampler steps as that cost buys, the static schedule
that does at every timestep what the policy mostly did there, and, where exits keep no state, always
leaving at the exit of about that cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.evaluation import scores
from exitkit.evaluation.baselines import executed_macs, leaves, nearest_exit
from exitkit.evaluation.diagnostics import depth_map, error_by_layer, uncertainty_maps
from exitkit.evaluation.entries import Entry, Rival, acting, check_wrapped, wrapped_around
from exitkit.evaluation.evaluation_set import EvaluationSet, Runs
from exitkit.evaluation.facts import command, name_of, of_entries, parameters
from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.rows import Kind, Row
from exitkit.execution.trace import Trace
from exitkit.model import ExitModels, Wrapped
from exitkit.policies import FixedExit, NeverExit, Policy, Schedule, TimestepSchedule
from exitkit.sampling.sampler import SamplerBase

PILOT = 32
"""Seeds of a pilot run, none of which is used in the comparison."""
EXIT_SEEDS = 16
"""Seeds on which the errors of single exits are measured."""


@dataclass(frozen=True)
class SampledSet(EvaluationSet):
    """The same seeds through one sampler or several.

    Attributes:
        samplers: Samplers by name.
        seeds: Seeds of the comparison.
        metrics: What is measured.
        fewer_steps: Whether policies meet fewer steps at their cost; or further step counts.
        usual: Whether the number of seeds is the usual one, since nobody said another.
    """

    samplers: Mapping[str, SamplerBase]
    seeds: tuple[int, ...]
    metrics: Metrics
    fewer_steps: bool | Sequence[int] = True
    usual: bool = False

    @property
    def amount(self) -> str:
        return f"{len(self.seeds)} seeds"

    @property
    def sampler(self) -> SamplerBase:
        """The first sampler."""
        return next(iter(self.samplers.values()))

    @property
    def batch_size(self) -> int:
        """Samples that run together."""
        return min(sampler.batch_size for sampler in self.samplers.values())

    @property
    def pilot_seeds(self) -> list[int]:
        """Seeds beyond all others."""
        start = max(self.seeds) + 1
        return list(range(start, start + min(PILOT, self.batch_size)))

    @property
    def batch_count(self) -> int:
        return -(-len(self.seeds) // self.batch_size)

    def batches(self) -> Iterator[Sequence[int]]:
        # The last batch is shorter if need be, and then so for every rival.
        for first in range(0, len(self.seeds), self.batch_size):
            yield self.seeds[first : first + self.batch_size]

    def run(self, rival: Rival, batch: Sequence[int]) -> tuple[Tensor, Trace | None]:
        sampler = self.samplers[rival.sampler]
        if rival.steps is not None and rival.steps != sampler.steps:
            sampler = sampler.with_steps(rival.steps)
        with rival.acting():
            sample = sampler.run(rival.module, batch)
        return sample.samples, sample.trace

    def keep(self, rival: Rival, batch: Any, outputs: Tensor) -> Tensor:
        return outputs.detach().float().cpu()

    def warm_up(self, rivals: Sequence[Rival]) -> None:
        self.run(rivals[0], self.pilot_seeds[:2])

    def line_up(self, entries: Sequence[Entry], full: nn.Module) -> tuple[list[Rival], list[str]]:
        wrapped = next((e.model for e in entries if isinstance(e.model, Wrapped)), None)
        rivals: list[Rival] = []
        for name, sampler in self.samplers.items():
            # With one sampler its name in every row would only be noise.
            suffix = f", {name}" if len(self.samplers) > 1 else ""
            bare = full if wrapped is None else sampler.bare(full, wrapped)
            first = Rival(f"full{suffix}", "full", bare, sampler=name, steps=sampler.steps)
            rivals += self._line_up(
                entries, replace(first, around=wrapped_around(full, entries)), suffix
            )
        return rivals, []

    def _line_up(self, entries: Sequence[Entry], full: Rival, suffix: str) -> list[Rival]:
        """Those who run under one sampler, the full model first."""
        rivals, steps = [full], full.steps or 1
        seen: set[tuple[int, Policy | None]] = set()
        extra = [] if isinstance(self.fewer_steps, bool) else list(self.fewer_steps)
        fewer = {n: f"fewer steps ({n}){suffix}" for n in extra}
        for entry in entries:
            own = self._own(entry, full, suffix, wrapped_around(entry.model, entries))
            bought = max(1, round((own[0].cost or 1.0) * steps))
            equal = None
            if self.fewer_steps is not False and bought < steps:
                equal = fewer.setdefault(bought, f"fewer steps ({bought}){suffix}")
            for rival in own:
                # Policies on one model share its static exits and its run without exits.
                known = (id(rival.module), rival.policy)
                if rival.kind in ("no exit", "fixed exit") and known in seen:
                    continue
                seen.add(known)
                equals = None if rival.kind == "no exit" else equal
                rivals.append(replace(rival, opponent=equals))
        return rivals + [
            replace(full, name=name, kind="fewer steps", steps=count)
            for count, name in sorted(fewer.items(), reverse=True)
        ]

    def _own(self, entry: Entry, full: Rival, suffix: str, around: Wrapped | None) -> list[Rival]:
        """The rivals that an entry brings, itself first; `cost` is that of its pilot run."""
        check_wrapped(entry)
        own = replace(
            full,
            name=entry.name + suffix,
            module=entry.model,
            family=entry.family or entry.name,
            around=around,
        )
        if not isinstance(entry.model, Wrapped):
            one = self.pilot_seeds[:1]
            macs = [executed_macs(partial(self.run, rival, one)) for rival in (own, full)]
            return [replace(own, kind="network", cost=macs[0] / macs[1])]
        policy = entry.acting
        assert policy is not None
        own = replace(own, kind="policy", policy=policy, model=entry.model.exit_config.preset)
        _, trace = self.run(own, self.pilot_seeds)
        assert trace is not None
        kinds: list[tuple[Kind, str, Policy]] = [("policy", "", policy)]
        kinds += _static(entry, entry.model, policy, trace)
        if entry.model.exit_config.loss.train_backbone:
            # How far fine-tuning alone moved the samples; it runs in full, so no steps rival it.
            kinds.append(("no exit", ", no exit", NeverExit()))
        return [
            replace(own, name=own.name + tail, kind=kind, policy=p, cost=trace.cost)
            for kind, tail, p in kinds
        ]

    def _full(self, runs: Runs) -> dict[str, str]:
        """Name of the full model's row for each sampler."""
        several = len(self.samplers) > 1
        return {name: f"full, {name}" if several else "full" for name in self.samplers}

    def rows(self, rivals: Sequence[Rival], runs: Runs) -> list[Row]:
        full = self._full(runs)
        return [
            scores.sampled(
                rival, runs, full[rival.sampler], self.samplers[rival.sampler].steps, self.metrics
            )
            for rival in rivals
        ]

    def notes(self, runs: Runs) -> list[str]:
        found = {name: runs.outputs[name] for name in self._full(runs).values()}
        kinds = dict.fromkeys(type(sampler).__name__ for sampler in self.samplers.values())
        usual = (
            f"on {self.amount}, as many as is usual for {' and '.join(kinds)}; seeds= says another number: "
            "intervals narrow with its square root, and time grows with it."
        )
        return [*([usual] if self.usual else []), *scores.blind_spots(found, self.metrics)]

    def facts(self, entries: Sequence[Entry], full: nn.Module, runs: Runs) -> dict[str, str]:
        seeds, metrics = self.seeds, self.metrics
        shape = next(iter(runs.outputs.values())).shape[1:]
        found = {
            "command": command(),
            "backbone": f"{name_of(full)}, {parameters(full)}",
            "sample shape": " × ".join(map(str, shape)),
            "sampler": f"{', '.join(self.samplers)}, {self.sampler.steps} steps",
            "seeds": f"{len(seeds)}, {min(seeds)} to {max(seeds)}, in batches of {self.batch_size}",
            "intervals": "95 %, percentile bootstrap over seeds, 2000 resamples",
            "opponents": "step counts, schedules and fixed exits are read from a pilot run of each "
            f"policy on {len(self.pilot_seeds)} other seeds",
        }
        if metrics.features is not None:
            real = metrics.reference
            named = "the full run's own images" if real is None else f"{len(real)} real images"
            features = type(metrics.features).__name__
            found["Fréchet distance"] = f"features of {features}, to {named}"
        return {**found, **of_entries(entries)}

    def pictures(self, runs: Runs) -> dict[str, Tensor]:
        return {name: samples[: self.metrics.pictures] for name, samples in runs.outputs.items()}

    def depths(self, rivals: Sequence[Rival], runs: Runs) -> dict[str, DepthMap]:
        policies = [rival.name for rival in rivals if rival.kind == "policy"]
        return {name: depth_map(runs.traces[name]) for name in policies if name in runs.traces}

    def exits(
        self, entries: Sequence[Entry], progress: bool = False
    ) -> tuple[dict[str, LayerErrors], dict[str, UncertaintyMaps]]:
        errors: dict[str, LayerErrors] = {}
        maps: dict[str, UncertaintyMaps] = {}
        seen: dict[int, str] = {}
        for entry in entries:
            # Exits do not depend on the policy: one look at each model is enough.
            model, name = entry.model, entry.family or entry.name
            first = seen.setdefault(id(model), entry.name) == entry.name
            if not isinstance(model, Wrapped) or not first:
                continue
            several = isinstance(model, ExitModels)
            parts = {f"{name}, {part}": one for part, one in model.items()} if several else {}
            for label, one in (parts or {name: model}).items():
                if not one.exits:  # whole steps are completed, without exits on the way
                    continue
                with acting(one, entry.acting):
                    seeds = self.seeds[:EXIT_SEEDS]
                    errors[label] = error_by_layer(one, self.sampler, seeds, progress=progress)
                    if one.exit_config.uncertainty.kind == "map":
                        # Packed tokens are no image, and there is no map of them to show.
                        with suppress(ConfigError):
                            maps[label] = uncertainty_maps(one, self.sampler, seeds=self.seeds[:1])
        return errors, maps


def _static(
    entry: Entry, model: Wrapped, policy: Policy, trace: Trace
) -> list[tuple[Kind, str, Policy]]:
    """The static opponents of a policy that sometimes leaves and is not static itself."""
    if not leaves(trace) or isinstance(policy, Schedule):
        return []
    found: list[tuple[Kind, str, Policy]] = []
    if entry.static in (True, "schedule"):
        found.append(("mode schedule", ", its schedule", TimestepSchedule.from_trace(trace)))
    # A carried exit leans on full steps, so that one exit at every step is no policy of it.
    if entry.static in (True, "fixed exit") and not model.heads.kind.needs_trajectory:
        nearest = nearest_exit(model, trace.cost)
        found.append(("fixed exit", f", always exit {nearest}", FixedExit(nearest)))
    return found
