"""The jobs of a reproduction: each is one comparison, kept as JSON and Markdown when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.reproduction.models import suites
from examples.reproduction.small.pruning import fine_tuned, pruned_uvit, ratio_for
from examples.reproduction.small.settings import Settings
from examples.reproduction.small.variants import ABLATIONS
from exitkit.benchmark import Method, Recipe, Suite, calibrated, fitted, methods_for
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel
from exitkit.policies import policy_from_dict
from exitkit.report import figures
from exitkit.sampling.solvers import make_scheduler
from exitkit.training import Checkpoints

PICTURES = ("tradeoff", "error_by_layer", "loss_by_timestep", "uncertainty_")
"""Figures of the report that the article has too."""
PAPER_ROWS = ("adadiff paper", "berxit", "calm meta", "calm cosine", "static")


@dataclass
class Bench:
    """What all jobs share.

    Attributes:
        settings: Sizes.
        work: Folder for fitted exits and finished jobs; a stopped run goes on from it.
        say: Tells what is going on.
        models: Fitted models, by suite and exits.
    """

    settings: Settings
    work: Path
    say: Callable[[str], None]
    models: dict[tuple[str, str], ExitModel] = field(default_factory=dict)

    def entries(
        self, suite: Suite, methods: Sequence[Method], budget: float | None = None
    ) -> tuple[list[Entry], list[str]]:
        """Fits and calibrates methods; notes what could not meet the budget.

        A threshold means another cost under another sampler, so each job calibrates with its own.
        """
        s = self.settings
        entries: list[Entry] = []
        notes: list[str] = []
        for method in methods:
            name = (suite.name, method.exits.name)
            if name not in self.models:
                self.say(f"{suite.name}: exits {method.exits.name}")
                # The fused attention of processors is slow in bfloat16, backwards most of all.
                with sdpa_kernel(SDPBackend.MATH):
                    self.models[name] = fitted(
                        suites.BY_NAME[suite.name]().with_steps(s.steps),
                        method.exits,
                        self.recipe,
                        self.work / "exits",
                    )
            entry, note = self._calibrated(suite, method, self.models[name], budget or s.budget)
            # At the suite's own budget rows bear the method's name, else they form its curve.
            shown = {"name": method.name} if budget is None else {"family": method.name}
            entries.append(replace(entry, **shown))
            notes += [note] if note else []
        return entries, notes

    @property
    def recipe(self) -> Recipe:
        """How exits are fitted."""
        s = self.settings
        options = {"precision": "bf16", "checkpoints": Checkpoints(every=100)}
        return Recipe(s.fit_steps, s.batch, s.rollouts, s.calibration, fit=options)

    def _calibrated(
        self, suite: Suite, method: Method, model: ExitModel, budget: float
    ) -> tuple[Entry, str | None]:
        """Calibrates a method, or takes the policy that was found before."""
        # Schedulers of one class with other options are other samplers.
        sampler = suite.sampler.describe()
        folder = self.work / "policies" / suite.name
        solver = sampler["scheduler"]
        solver = solver if isinstance(solver, str) else solver["class"]
        folder = folder / f"{solver} {suite.sampler.steps}"
        place = folder / f"{method.name} at {budget:g}.json"
        kept = json.loads(place.read_text()) if place.is_file() else {}
        if kept and kept.get("sampler") == sampler:
            policy = policy_from_dict(kept["policy"])
            return Entry(f"{method.name} at {budget:g}", model, policy), kept["note"]
        self.say(f"{suite.name}: calibrates {method.name} to {budget:g}")
        entry, note = calibrated(suite, method, model, budget, self.settings.calibration)
        place.parent.mkdir(parents=True, exist_ok=True)
        kept = {"policy": entry.acting.to_dict(), "note": note, "sampler": sampler}
        place.write_text(json.dumps(kept))
        return entry, note

    def run(
        self,
        suite: Suite,
        entries: Sequence[Entry],
        notes: Sequence[str] = (),
        *,
        title: str,
        seeds: int | None = None,
        static: bool = False,
        exits: bool = False,
    ) -> Comparison:
        """Compares entries on a suite."""
        s = self.settings
        guided = suite.sampler.guidance_scale is not None
        usual = s.guided_seeds if guided else s.seeds
        usual = s.unet_seeds if suite.name == "unet" else usual
        self.say(f"{suite.name}: compares {len(entries)} entries")
        result = compare(
            [replace(entry, static=static) for entry in entries],
            suite.sampler,
            seeds=range(seeds or usual),
            metrics=replace(suite.metrics(), exits=exits),
            baseline=suite.backbone(),
            progress=False,
        )
        return replace(result, title=title).with_notes(notes)


def _under(suite: Suite, steps: int, **changes: Any) -> Suite:
    """The suite with another sampler."""
    return replace(suite, sampler=replace(suite.sampler, steps=steps, **changes))


def _unconditional(bench: Bench, make: Callable[[], Suite]) -> Comparison:
    """Tables 1 and 2: no condition, Euler-Maruyama."""
    suite, s = make(), bench.settings
    # A tenth of the steps: a search under all of them would take hours.
    short = _under(suite, max(2, s.euler // 10), scheduler="euler-maruyama")
    entries, notes = bench.entries(short, methods_for(PAPER_ROWS))
    return bench.run(
        # The size of a batch is also the number of seeds of the pilots, which are as long.
        _under(suite, s.euler, scheduler="euler-maruyama", batch_size=12),
        entries,
        notes,
        seeds=s.long_unet_seeds if suite.name == "unet" else s.long_seeds,
        title=f"Unconditional, Euler-Maruyama {s.euler}: {suite.name}",
    )


def _guided(bench: Bench, make: Callable[[], Suite]) -> Comparison:
    """Tables 3 and 4: by class and by text, guided, DPM-Solver."""
    suite, s = make(), bench.settings
    # DDIM clips the predicted image unless told not to, this solver only if told to, and exits need it
    # (`python -m benchmarks.clipping`). A largest value of 1 makes its dynamic threshold a plain clip.
    plain = make_scheduler("dpm++", suite.sampler.scheduler)
    solver = type(plain).from_config(plain.config, thresholding=True, sample_max_value=1.0)
    suite = _under(suite, s.dpm, scheduler=solver)
    entries, notes = bench.entries(suite, methods_for([*PAPER_ROWS, "carried"]))
    title = f"Guided, DPM-Solver++ {s.dpm}, clipped: {suite.name}"
    return bench.run(suite, entries, notes, title=title)


def _pruning(bench: Bench) -> Comparison:
    """Table 5: smaller networks of equal cost, DDIM."""
    s = bench.settings
    suite = suites.uvit().with_steps(s.ddim)
    entries, notes = bench.entries(suite, methods_for(["adadiff paper", "static", "carried"]))
    model = pruned_uvit(ratio_for(s.budget))
    path = bench.work / "exits" / "uvit" / "pruned.safetensors"
    pruned = fine_tuned(model, s.fit_steps, s.batch, path, bench.say)
    entries.append(Entry("structural pruning", pruned))
    entries += [Entry(name, make()) for name, make in suite.networks.items()]
    return bench.run(suite, entries, notes, title=f"Equal cost, DDIM {s.ddim}")


def _ablations(bench: Bench) -> Comparison:
    """Table 6: one part of the recipe changed at a time."""
    suite = suites.uvit().with_steps(bench.settings.steps)
    entries, notes = bench.entries(suite, ABLATIONS)
    return bench.run(suite, entries, notes, title="Ablations, DDIM")


def _policies(bench: Bench, make: Callable[[], Suite]) -> Comparison:
    """Every policy on one backbone, each dynamic one beside its own schedule."""
    suite = make().with_steps(bench.settings.steps)
    entries, notes = bench.entries(suite, methods_for())
    entries += [Entry(name, build()) for name, build in suite.networks.items()]
    title = f"Every policy on {suite.name}, DDIM {bench.settings.steps}"
    return bench.run(suite, entries, notes, static=True, title=title)


def _curves(bench: Bench) -> Comparison:
    """Figures: quality against cost, errors by layer, uncertainty maps."""
    suite = suites.uvit().with_steps(bench.settings.steps)
    entries: list[Entry] = []
    notes: list[str] = []
    chosen = methods_for(["adadiff paper", "berxit", "calm meta", "carried"])
    for budget in bench.settings.budgets:
        found, more = bench.entries(suite, chosen, budget)
        entries += found
        notes += more
    return bench.run(suite, entries, notes, exits=True, title="Quality against cost")


JOBS: dict[str, Callable[[Bench], Comparison]] = {
    "policies_uvit": partial(_policies, make=suites.uvit),
    "table5_pruning": _pruning,
    "table6_ablations": _ablations,
    "table3_class_conditional": partial(_guided, make=suites.dit),
    "figures": _curves,
    "policies_dit": partial(_policies, make=suites.dit),
    "table1_unconditional": partial(_unconditional, make=suites.uvit),
    "table4_text_guided": partial(_guided, make=suites.pixart),
    "policies_unet": partial(_policies, make=suites.unet),
    "table2_unconditional_unet": partial(_unconditional, make=suites.unet),
}
"""All jobs, in the order of what is learned per minute."""

GROUPS: tuple[tuple[str, ...], ...] = (
    (
        "policies_uvit",
        "table5_pruning",
        "table6_ablations",
        "figures",
        "table1_unconditional",
    ),
    ("table3_class_conditional", "policies_dit", "table4_text_guided"),
    ("policies_unet", "table2_unconditional_unet"),
)
"""Jobs that share exits, and therefore run one after another; groups may run side by side."""


def run_job(name: str, bench: Bench, out: Path, command: str) -> Path:
    """Runs a job, or does nothing if it is done.

    Args:
        name: Name of the job.
        bench: What all jobs share.
        out: Folder for the pages.
        command: How to run it again, for the page.

    Returns:
        The page.
    """
    page, done = out / f"{name}.md", bench.work / f"{name}.json"
    if done.is_file() and page.is_file():
        bench.say(f"{name}: done before")
        return page
    torch.manual_seed(0)
    result = JOBS[name](bench)
    out.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f"- {key}: {value}" for key, value in result.settings.items())
    page.write_text(
        f"# {result.title}\n\n`{command}`\n\n{result.to_markdown()}\n\n"
        + "".join(f"- note: {note}\n" for note in result.notes)
        + f"\n{facts}\n"
    )
    if name == "figures":
        for figure in figures(result):
            if figure.name.startswith(PICTURES):
                (out / f"{figure.name}.png").write_bytes(figure.light)
                bench.say(f"figure: {figure.name}")
    bench.work.mkdir(parents=True, exist_ok=True)
    result.to_json(done)
    json.loads(done.read_text())  # a half-written file must not count as done
    return page
