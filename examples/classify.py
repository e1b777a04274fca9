"""Classifiers that stop early: a timm ViT and a timm ResNet on the digits, accuracy against MACs.

    python examples/classify.py              # both networks; about a quarter of an hour on two cores
    python examples/classify.py --quick      # tiny numbers, only shows that everything runs

Every preset fine-tunes its exits from the same bare classifier on the same batches. Each policy is
then calibrated to the same budgets on digits that no weight was fitted to, and compared on the
held-out ones with the exit it mostly takes and the exit of about its cost. Finished training is kept
under --work, so a second call only compares.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import exitkit as ek
from examples.reference.timm_digits import (
    BARE_STEPS,
    NETWORKS,
    Batches,
    Parts,
    Recipe,
    bare,
    exits,
    in_batches,
)
from exitkit.errors import CalibrationError
from exitkit.evaluation.classification import ClassificationComparison, Entry
from exitkit.evaluation.dials import turned
from exitkit.policies import (
    CALM,
    ConfidenceThreshold,
    EntropyThreshold,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
)

POLICIES: dict[str, dict[str, str | Policy]] = {
    "branchynet": {
        "entropy": EntropyThreshold(0.1),
        "confidence": ConfidenceThreshold(0.9),
        "static": "static",
    },
    "calm": {
        "margin": CALM("margin", 0.9),
        "margin, whole batch": CALM("margin", 0.9, whole_batch=True),
        "cosine": CALM("cosine", 0.9),
        "cosine, whole batch": CALM("cosine", 0.9, whole_batch=True),
        "meta": CALM("meta", 0.9),
        "meta, whole batch": CALM("meta", 0.9, whole_batch=True),
    },
    "berxit": {"learning to exit": LearningToExit(0.1)},
    "pabee": {
        "patience": Patience(2),
        "patience, whole batch": Patience(2, whole_batch=True),
    },
    "relative": {
        "uncertainty": UncertaintyThreshold(0.1),
        "static": "static",
        "oracle": Oracle(delta=1.0),
    },
    "paper": {"uncertainty": UncertaintyThreshold(0.1)},
}
"""What is calibrated on the exits of each preset."""


def settled(
    model: ek.ExitModel, batches: Batches, wanted: str | Policy, budget: float, name: str
) -> tuple[Policy, list[str]]:
    """The policy at a budget, or the nearest to it that there is, and then a note that says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the note says it, and stays with the table
            policy = ek.calibrate(model, loader=batches, budget=budget, policy=wanted)
    except CalibrationError as error:
        if not isinstance(wanted, Policy):
            return ek.policies.FixedExit(1), [f"{name!r}: {error} The first exit is shown."]
        return turned(wanted, 1.0), [
            f"{name!r} cannot cost as little as {budget:g}; its cheapest setting is shown."
        ]
    cost = model.calibration.cost
    if abs(cost - budget) <= 0.02 * budget:
        return policy, []
    return policy, [
        f"{name!r}: its costs come in steps, and the nearest at or below {budget:g} is {cost:.3f} on "
        "the calibration digits."
    ]


def compared(
    kind: str, recipe: Recipe, budgets: Sequence[float], work: Path, count: int, repeats: int
) -> ClassificationComparison:
    """Trains, calibrates and compares the exits of one network."""
    parts = Parts.load()
    folder = work / f"{kind}_{recipe.bare}_{recipe.exits}_{recipe.batch}_{recipe.seed}"
    full: nn.Module = bare(kind, parts.fitted, recipe, folder)
    models = {p: exits(kind, p, parts.fitted, recipe, folder) for p in POLICIES}
    size = min(50, count)
    calibration = in_batches(parts.calibration, size)[: count // size]
    entries, notes = [], []
    for budget in budgets:
        for preset, policies in POLICIES.items():
            for label, wanted in policies.items():
                name = f"{preset}: {label}, at {budget:g}"
                policy, remarks = settled(models[preset], calibration, wanted, budget, name)
                entries.append(Entry(name, models[preset], policy))
                notes += remarks
    comparison = ek.compare_classifiers(
        entries,
        in_batches(parts.held_out, size)[: count // size],
        baseline=full,
        repeats=repeats,
        title=f"Exits of a timm {type(full).__name__} on the digits",
    )
    return replace(comparison, notes=(*notes, *comparison.notes))


def page(result: ClassificationComparison, facts: dict[str, str]) -> str:
    """The comparison as a page: how it was made, the table, what to know, all policies."""
    policies = {n: text for n, text in result.settings.items() if n.startswith("policy of ")}
    rest = {n: text for n, text in result.settings.items() if n not in policies}
    command = rest["command"].replace("classify.py", "examples/classify.py", 1)
    rest = {**rest, **result.machine, "command": f"`{command}`"}
    lines = [f"# {result.title}", ""]
    lines += [f"- {name}: {text}" for name, text in {**rest, **facts}.items()]
    lines += ["", result.to_markdown(), "", READING, "", "## Notes", ""]
    lines += [f"- {note}" for note in result.notes] or ["None."]
    lines += ["", "## Policies after calibration", ""]
    lines += [f"- {name.removeprefix('policy of ')}: `{text}`" for name, text in policies.items()]
    return "\n".join(lines) + "\n"


READING = """`MACs` are executed multiply-adds over those of the full model, heads included; `minus full` and
`minus fixed exit` are differences of accuracy in percentage points, in pairs with the bare full model
and with the static exit of about the policy's cost; `same label` is the share of images that get the
full model's class; `depth` counts exits; `depth by class` is the share of the variance of depth that
the true class explains; `wall clock` is measured against the full model in the same process,
interleaved by batch. `its schedule` always takes the exit that the policy mostly takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", help="vit, resnet; both if none")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument(
        "--threads", type=int, default=None, help="torch threads; all cores if left out"
    )
    parser.add_argument("--bare-steps", type=int, default=None)
    parser.add_argument("--exit-steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", type=float, nargs="+", default=None)
    parser.add_argument("--work", type=Path, default=Path("runs/classify"), help="kept training")
    parser.add_argument("--out", type=Path, default=Path("outputs/classify"))
    args = parser.parse_args()
    kinds = args.networks or list(NETWORKS)
    unknown = [kind for kind in kinds if kind not in NETWORKS]
    if unknown:
        parser.error(f"no network {unknown[0]!r}; networks: {', '.join(NETWORKS)}")
    if args.threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(args.threads or os.cpu_count() or 1)
    quick = args.quick
    budgets = args.budgets or ([0.6] if quick else [0.5, 0.7])
    count, repeats = (8, 1) if quick else (500, 3)
    started = time.perf_counter()
    for kind in kinds:
        steps = args.bare_steps or BARE_STEPS[kind]
        recipe = Recipe(steps, args.exit_steps, seed=args.seed)
        recipe = Recipe(4, 2, 8, seed=args.seed) if quick else recipe
        result = compared(kind, recipe, budgets, args.work, count, repeats)
        facts = {
            "training": f"{recipe.bare} steps bare, then {recipe.exits} steps for each preset, "
            f"{recipe.batch} images a step, AdamW at {recipe.lr:g}, seed {recipe.seed}",
            "budgets": f"{', '.join(map(str, budgets))} of the full model's MACs, calibrated on "
            f"{count} training digits that no weight was fitted to",
        }
        args.out.mkdir(parents=True, exist_ok=True)
        target = args.out / f"classification_{kind}.md"
        target.write_text(page(result, facts), encoding="utf-8")
        result.to_json(target.with_suffix(".json"))
        result.save_figure(target.with_suffix(".png"))
        print(f"{result}\n\ntable:   {target}", flush=True)
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
