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

from examples.reproduction.models import studies
from examples.reproduction.small.pruning import fine_tuned, pruned_uvit, ratio_for
from examples.reproduction.small.settings import Settings
from examples.reproduction.small.variants import ABLATIONS
from exitkit.benchmark import Contender, Study, contenders_for, fitted
from exitkit.benchmark.run import calibrated
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel
from exitkit.policies import policy_from_dict
from exitkit.report import figures
from exitkit.sampling.solvers import make_scheduler

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
        models: Fitted models, by study and exits.
    """

    settings: Settings
    work: Path
    say: Callable[[str], None]
    models: dict[tuple[str, str], ExitModel] = field(default_factory=dict)

    def entries(
        self,
        study: Study,
        contenders: Sequence[Contender],
        budget: float | None = None,
        *,
        sampler: Any = None,
        steps: int | None = None,
    ) -> tuple[list[Entry], list[str]]:
        """Fits and calibrates contenders; notes what could not meet the budget.

        A threshold means another cost under another sampler, so each job calibrates with its own.
        """
        asked = study if sampler is None else replace(study, scheduler=sampler)
        s = self.settings
        entries: list[Entry] = []
        notes: list[str] = []
        for contender in contenders:
            name = (study.name, contender.exits.name)
            if name not in self.models:
                self.say(f"{study.name}: exits {contender.exits.name}")
                # The fused attention of processors is slow in bfloat16, backwards most of all.
                with sdpa_kernel(SDPBackend.MATH):
                    self.models[name] = fitted(
                        study,
                        contender.exits,
                        steps=s.fit_steps,
                        sampler_steps=s.steps,
                        batch_size=s.batch,
                        walks=s.walks,
                        folder=self.work / "exits",
                        fit_options={"mixed_precision": "bf16", "checkpoint_every": 100},
                    )
            entry, note = self._calibrated(
                asked, contender, self.models[name], budget or s.budget, steps or s.steps
            )
            # At the study's own budget rows bear the contender's name, else they form its curve.
            shown = {"name": contender.name} if budget is None else {"family": contender.name}
            entries.append(replace(entry, **shown))
            notes += [note] if note else []
        return entries, notes

    def _calibrated(
        self, study: Study, contender: Contender, model: ExitModel, budget: float, steps: int
    ) -> tuple[Entry, str | None]:
        """Calibrates a contender, or takes the policy that was found before."""
        by = study.scheduler
        sampler = by if isinstance(by, str) else type(by).__name__
        # Schedulers of one class with other options are other samplers.
        options = {k: repr(v) for k, v in dict(getattr(by, "config", {})).items() if k[0] != "_"}
        folder = self.work / "policies" / study.name / f"{sampler} {steps}"
        place = folder / f"{contender.name} at {budget:g}.json"
        kept = json.loads(place.read_text()) if place.is_file() else {}
        if kept and kept.get("sampler") == options:
            policy = policy_from_dict(kept["policy"])
            return Entry(f"{contender.name} at {budget:g}", model, policy), kept["note"]
        self.say(f"{study.name}: calibrates {contender.name} to {budget:g}")
        entry, note = calibrated(
            study,
            contender,
            model,
            budget,
            sampler_steps=steps,
            count=self.settings.calibration,
        )
        assert entry.policy is not None
        place.parent.mkdir(parents=True, exist_ok=True)
        kept = {"policy": entry.policy.to_dict(), "note": note, "sampler": options}
        place.write_text(json.dumps(kept))
        return entry, note

    def run(
        self,
        study: Study,
        entries: Sequence[Entry],
        notes: Sequence[str] = (),
        *,
        sampler: Any = None,
        steps: int | None = None,
        seeds: int | None = None,
        **options: Any,
    ) -> Comparison:
        """Compares entries on a study."""
        s = self.settings
        usual = s.seeds if study.guidance_scale is None else s.guided_seeds
        usual = s.unet_seeds if study.name == "unet" else usual
        self.say(f"{study.name}: compares {len(entries)} entries")
        result = compare(
            entries,
            scheduler=sampler if sampler is not None else study.scheduler,
            shape=study.shape,
            baseline=study.backbone(),
            steps=steps or s.steps,
            seeds=seeds or usual,
            features=study.features() if study.features else None,
            reference_images=study.reference_images() if study.reference_images else None,
            classifier=study.classifier() if study.classifier else None,
            progress=False,
            **{**study.sampling, "diagnostics": False, **options},
        )
        return result.with_notes(notes)


def _unconditional(bench: Bench, make: Callable[[], Study]) -> Comparison:
    """Tables 1 and 2: no condition, Euler-Maruyama."""
    study, s = make(), bench.settings
    # A tenth of the steps: a search under all of them would take hours.
    short = max(2, s.euler // 10)
    entries, notes = bench.entries(
        study, contenders_for(PAPER_ROWS), sampler="euler-maruyama", steps=short
    )
    return bench.run(
        study,
        entries,
        notes,
        sampler="euler-maruyama",
        steps=s.euler,
        seeds=s.long_unet_seeds if study.name == "unet" else s.long_seeds,
        static=False,
        batch_size=12,  # also the number of seeds of the pilots, which are as long
        title=f"Unconditional, Euler-Maruyama {s.euler}: {study.name}",
    )


def _guided(bench: Bench, make: Callable[[], Study]) -> Comparison:
    """Tables 3 and 4: by class and by text, guided, DPM-Solver."""
    study, s = make(), bench.settings
    # DDIM clips the predicted image unless told not to, this solver only if told to, and exits need it
    # (`python -m benchmarks.clipping`). A largest value of 1 makes its dynamic threshold a plain clip.
    plain = make_scheduler("dpm++", study.scheduler)
    sampler = type(plain).from_config(plain.config, thresholding=True, sample_max_value=1.0)
    chosen = contenders_for([*PAPER_ROWS, "carried"])
    entries, notes = bench.entries(study, chosen, sampler=sampler, steps=s.dpm)
    return bench.run(
        study,
        entries,
        notes,
        sampler=sampler,
        steps=s.dpm,
        static=False,
        title=f"Guided, DPM-Solver++ {s.dpm}, clipped: {study.name}",
    )


def _pruning(bench: Bench) -> Comparison:
    """Table 5: smaller networks of equal cost, DDIM."""
    study, s = studies.uvit(), bench.settings
    chosen = contenders_for(["adadiff paper", "static", "carried"])
    entries, notes = bench.entries(study, chosen, steps=s.ddim)
    model = pruned_uvit(ratio_for(s.budget))
    path = bench.work / "exits" / "uvit" / "pruned.safetensors"
    pruned = fine_tuned(model, s.fit_steps + s.fit_steps // 2, s.batch, path, bench.say)
    entries.append(Entry("structural pruning", pruned))
    entries += [Entry(name, make()) for name, make in study.networks.items()]
    return bench.run(
        study, entries, notes, steps=s.ddim, static=False, title=f"Equal cost, DDIM {s.ddim}"
    )


def _ablations(bench: Bench) -> Comparison:
    """Table 6: one part of the recipe changed at a time."""
    study = studies.uvit()
    entries, notes = bench.entries(study, ABLATIONS)
    return bench.run(study, entries, notes, static=False, title="Ablations, DDIM")


def _policies(bench: Bench, make: Callable[[], Study]) -> Comparison:
    """Every policy on one backbone, each dynamic one beside its own schedule."""
    study = make()
    entries, notes = bench.entries(study, contenders_for())
    entries += [Entry(name, build()) for name, build in study.networks.items()]
    title = f"Every policy on {study.name}, DDIM {bench.settings.steps}"
    return bench.run(study, entries, notes, title=title)


def _curves(bench: Bench) -> Comparison:
    """Figures: quality against cost, errors by layer, uncertainty maps."""
    study = studies.uvit()
    entries: list[Entry] = []
    notes: list[str] = []
    chosen = contenders_for(["adadiff paper", "berxit", "calm meta", "carried"])
    for budget in bench.settings.budgets:
        found, more = bench.entries(study, chosen, budget)
        entries += found
        notes += more
    return bench.run(
        study, entries, notes, static=False, diagnostics=True, title="Quality against cost"
    )


JOBS: dict[str, Callable[[Bench], Comparison]] = {
    "policies_uvit": partial(_policies, make=studies.uvit),
    "table5_pruning": _pruning,
    "table6_ablations": _ablations,
    "table3_class_conditional": partial(_guided, make=studies.dit),
    "figures": _curves,
    "policies_dit": partial(_policies, make=studies.dit),
    "table1_unconditional": partial(_unconditional, make=studies.uvit),
    "table4_text_guided": partial(_guided, make=studies.pixart),
    "policies_unet": partial(_policies, make=studies.unet),
    "table2_unconditional_unet": partial(_unconditional, make=studies.unet),
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
