"""Classifiers that stop early: a timm ViT and a timm ResNet on the digits, accuracy against MACs.

    python -m examples.reproduction.small.classify           # both networks; a quarter of an hour
    python -m examples.reproduction.small.classify --quick   # tiny numbers: does it run?

Every preset fine-tunes its exits from the same bare classifier on the same batches. Each policy is
then calibrated to the same budgets on digits that no weight was fitted to, and compared on the
held-out ones with the exit it mostly takes and the exit of about its cost. Finished training is kept
under --work, so a second call only compares. `exitkit compare` runs the same suites.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from examples.reproduction.models.timm_digits import BARE_STEPS, NETWORKS, Training, digits_suite
from exitkit.benchmark import Recipe, methods_for, run_suite
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.results import Comparison
from exitkit.report import figures

METHODS = methods_for(use="classification")


def page(result: Comparison, facts: dict[str, str]) -> str:
    """The comparison as a page: how it was made, the table, what to know, all policies."""
    policies = {n: text for n, text in result.settings.items() if n.startswith("policy of ")}
    rest = {n: text for n, text in result.settings.items() if n not in policies}
    command = rest["command"].replace("classify.py", "-m examples.reproduction.small.classify", 1)
    rest = {**rest, **result.machine, "command": f"`{command}`"}
    lines = [f"# {result.title}", ""]
    lines += [f"- {name}: {text}" for name, text in {**rest, **facts}.items()]
    lines += ["", result.to_markdown(), "", READING, "", "## Notes", ""]
    lines += [f"- {note}" for note in result.notes] or ["None."]
    lines += ["", "## Policies after calibration", ""]
    lines += [f"- {name.removeprefix('policy of ')}: `{text}`" for name, text in policies.items()]
    return "\n".join(lines) + "\n"


NAMES = {"vit": "ViT", "resnet": "ResNet"}
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
        training = Training(steps, args.exit_steps, seed=args.seed)
        training = Training(4, 2, 8, seed=args.seed) if quick else training
        suite = digits_suite(kind, training, args.work, count)
        result = run_suite(
            replace(suite, metrics=lambda: Metrics(repeats=repeats)),
            METHODS,
            budgets=budgets,
            recipe=Recipe(training.exits, training.batch),
            folder=args.work
            / f"exits_{training.bare}_{training.exits}_{training.batch}_{training.seed}",
        )
        result = replace(result, title=f"Exits of a timm {NAMES[kind]} on the digits")
        facts = {
            "training": f"{training.bare} steps bare, then {training.exits} steps for each preset, "
            f"{training.batch} images a step, AdamW at {training.lr:g}, seed {training.seed}",
            "budgets": f"{', '.join(map(str, budgets))} of the full model's MACs, calibrated on "
            f"{count} training digits that no weight was fitted to",
        }
        args.out.mkdir(parents=True, exist_ok=True)
        target = args.out / f"classification_{kind}.md"
        target.write_text(page(result, facts), encoding="utf-8")
        result.to_json(target.with_suffix(".json"))
        (accuracy,) = figures(result)
        target.with_suffix(".png").write_bytes(accuracy.light)
        print(f"{result}\n\ntable:   {target}", flush=True)
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
