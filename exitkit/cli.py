"""The command line: exits for a pipeline or a network without a program of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="exitkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Address = Annotated[
    str,
    typer.Argument(
        help="Folder of a diffusers pipeline, timm/NAME, or module:function of a pipeline or a suite."
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help='JSON or TOML: preset, exits, calls ([{"prompt": ...}]), call ({"num_inference_steps": 28}), '
        "rows, data, weights, device, dtype, fit (steps, batch_size, seed), calibrate (budget, max_error, "
        "policy, seeds), compare (policies, budget, steps, seeds, recipe).",
    ),
]
Exits = Annotated[Path, typer.Option("--exits", help="Folder that `exitkit fit` has written.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _version(wanted: bool) -> None:
    if wanted:
        import exitkit

        typer.echo(f"exitkit {exitkit.__version__}")
        raise typer.Exit


@app.callback()
def settings(
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves the default.")] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version.")
    ] = False,
) -> None:
    """Exits for diffusion backbones and classifiers.

    A story: `exitkit inspect PIPE`, then `exitkit fit PIPE --settings s.json --out exits`, `exitkit calibrate
    PIPE --exits exits --budget 0.6`, `exitkit generate PIPE --exits exits --out samples`. `exitkit compare`
    judges many methods on a suite.

    Exit status: 0 done, 1 an error of a library, 2 refused, with the reason on stderr.
    """
    if threads:
        import torch

        torch.set_num_threads(threads)


def _print(told: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(told) if as_json else text)


@app.command()
def inspect(address: Address, settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """Shows where a network, or each denoiser of a pipeline, can be left, and why not elsewhere.

    Nothing is downloaded and nothing changed: `exitkit inspect timm/resnet50`.
    """
    from exitkit.benchmark.targets import load_target, read_work
    from exitkit.pipelines.capture import denoisers, first_calls
    from exitkit.pipelines.enabling import is_pipeline
    from exitkit.pipelines.verbs import inspect as look

    target = load_target(address, read_work(settings))
    networks, calls = {"": target.subject}, {"": target.example_inputs}
    if is_pipeline(target.subject):
        networks = dict(denoisers(target.subject))
        calls = dict(first_calls(target.subject, networks, target.example_inputs))
    plans = {name: look(networks[name], example_inputs=calls[name]) for name in calls}
    fields = ("path", "class_name", "share", "usable", "pays", "reason")
    told = {
        name or plan.class_name: [{f: getattr(b, f) for f in fields} for b in plan.boundaries]
        for name, plan in plans.items()
    }
    _print(
        told, as_json, "\n".join(f"{n}: {plan}" if n else str(plan) for n, plan in plans.items())
    )


@app.command()
def fit(
    address: Address,
    out: Annotated[Path, typer.Option(help="Folder for the fitted exits.")],
    settings: SettingsFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Gives a pipeline or a suite's network exits, fits them, and saves them to a folder.

    Exits of a frozen backbone (relative, carried) are fitted on trajectories that the full model draws: no
    data needed. The others take the suite's data; those of timm/NAME the labelled images of the settings.
    """
    from exitkit.benchmark.targets import load_target, read_work
    from exitkit.benchmark.work import fit_target

    work = read_work(settings)
    told = fit_target(load_target(address, work), work, out, progress=not quiet)
    _print(told, as_json, f"{told['summary']}\n{told['seconds']:.1f} s; saved to {out}")


@app.command()
def calibrate(
    address: Address,
    exits: Exits,
    budget: Annotated[float | None, typer.Option(help="Cost to meet, in (0, 1].")] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest mean distance.")] = None,
    policy: Annotated[str | None, typer.Option(help="Family, such as schedule.")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Finds the policy that meets a budget or an error bound, and saves it with the exits."""
    from exitkit.benchmark.targets import load_target, read_work
    from exitkit.benchmark.work import calibrate_target

    work = read_work(settings)
    given = {"budget": budget, "max_error": max_error, "policy": policy}
    found = calibrate_target(load_target(address, work), work, exits, given, progress=not quiet)
    _print(found.to_dict(), as_json, f"{found}\nsaved to {exits}")


@app.command()
def generate(
    address: Address,
    out: Annotated[Path, typer.Option(help="Folder for samples.safetensors and trace.json.")],
    exits: Annotated[Path | None, typer.Option("--exits", help="Saved exits; none: bare.")] = None,
    seeds: Annotated[int, typer.Option(help="Samples, counted from seed 0.")] = 4,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draws samples by seeds, with saved exits or without, and says what they cost."""
    from exitkit.benchmark.targets import load_target, read_work
    from exitkit.benchmark.work import generate_target

    work = read_work(settings)
    told = generate_target(load_target(address, work), exits, out, seeds, progress=not quiet)
    _print(
        told,
        as_json,
        f"{told['samples']} samples, cost {told['cost']}, {told['seconds']:.1f} s: {out}",
    )


@app.command()
def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Names or wildcards.")] = None,
    classifiers: Annotated[bool, typer.Option(help="Those for classifiers.")] = False,
) -> None:
    """Lists what `compare` can run, and where it comes from."""
    from exitkit.benchmark.methods import Use, methods_for

    use: Use = "classification" if classifiers else "generation"
    for found in methods_for(names or ["*"], use):
        typer.echo(f"{found.name:21} exits: {found.exits.name:10} {found.source}")


@app.command()
def adapters(pattern: Annotated[str, typer.Argument(help="A wildcard.")] = "*") -> None:
    """Lists the architecture adapters that are known."""
    from exitkit.surgery.registry import list_adapters

    for name in list_adapters(pattern):
        typer.echo(name)


@app.command()
def compare(
    addresses: Annotated[
        list[str],
        typer.Argument(
            help="Addresses of suites, module:name, such as examples.reproduction.models.suites:uvit."
        ),
    ],
    policies: Annotated[
        str | None, typer.Option(help="Names or wildcards of methods, separated by commas.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Cost to calibrate to, in (0, 1]; .5 if not given.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds to compare on; 64 if not given.")] = None,
    settings: SettingsFile = None,
    out: Annotated[Path, typer.Option(help="Folder for fitted exits, tables and reports.")] = Path(
        "outputs/compare"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fits, calibrates and runs every policy on one or more suites; one table each.

    Suites of samplers and of classifiers may stand side by side; sampler steps and seeds are for the
    former. Options come before the settings file's `compare`, which has sampler steps and what fits and
    calibrations take, too: {"compare": {"steps": 20, "recipe": "steps=450,batch_size=32"}}.
    Fitted exits are kept in the folder: a stopped run goes on where it was, and a run with
    other settings of the fit wants another folder.
    """
    from exitkit.benchmark.methods import methods_for
    from exitkit.benchmark.recipe import recipe_from_text
    from exitkit.benchmark.run import run_suite
    from exitkit.benchmark.suite import load_suite
    from exitkit.benchmark.targets import read_work
    from exitkit.report import write_report

    told = read_work(settings).compare
    names = told.policies if policies is None else [name.strip() for name in policies.split(",")]
    spent = recipe_from_text(told.recipe)
    suites = [load_suite(address) for address in addresses]
    suites = [suite.with_steps(told.steps) if told.steps else suite for suite in suites]
    # All names before the first fit, which may take hours.
    chosen = [methods_for(names, suite.use) for suite in suites]
    results = {}
    for suite, asked in zip(suites, chosen, strict=True):
        result = run_suite(
            suite,
            asked,
            budgets=(told.budget if budget is None else budget,),
            seeds=told.seeds if seeds is None else seeds,
            recipe=spent,
            folder=out / "exits",
            progress=not quiet,
        )
        folder = out / suite.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(f"{result}\n")
        result.to_json(folder / "comparison.json")
        report = write_report(result, folder / "report.html")
        saved = json.loads((folder / "comparison.json").read_text())
        results[suite.name] = {"report": str(report), **saved}
        if not as_json:
            typer.echo(f"{result}\n")
            typer.echo(f"report: {report}")
    if as_json:
        typer.echo(json.dumps(results))
