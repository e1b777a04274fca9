"""The command line: `exitkit inspect`, `exitkit compare`, `exitkit methods`, `exitkit adapters`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="exitkit",
    help="Exits for diffusion backbones and classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def settings(
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves the default.")] = 0,
) -> None:
    """Exits for diffusion backbones and classifiers."""
    if threads:
        import torch

        torch.set_num_threads(threads)


@app.command()
def inspect(
    address: Annotated[
        str,
        typer.Argument(help="timm/NAME, or the address of a suite, module:name."),
    ],
) -> None:
    """Shows where a backbone can be left, and why not elsewhere."""
    from exitkit.benchmark.suite import load_suite
    from exitkit.benchmark.timm_models import PREFIX, timm_model
    from exitkit.pipelines.verbs import inspect as look

    if address.startswith(PREFIX):
        network, inputs = timm_model(address.removeprefix(PREFIX))
        typer.echo(str(look(network, example_inputs=inputs)))
        return
    found = load_suite(address)
    typer.echo(str(look(found.backbone(), example_inputs=found.example_inputs)))


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
        str, typer.Option(help="Names or wildcards of methods, separated by commas.")
    ] = "*",
    budget: Annotated[float, typer.Option(help="Cost to calibrate to, in (0, 1].")] = 0.5,
    steps: Annotated[int, typer.Option(help="Sampler steps; 0 takes the suite's own.")] = 0,
    seeds: Annotated[int, typer.Option(help="Seeds to compare on.")] = 64,
    recipe: Annotated[
        str,
        typer.Option(
            help="What fits and calibrations take: steps (of each kind of exits), batch_size, "
            "rollouts, calibration (seeds), seed."
        ),
    ] = "steps=450,batch_size=32",
    out: Annotated[Path, typer.Option(help="Folder for fitted exits, tables and reports.")] = Path(
        "outputs/compare"
    ),
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Fits, calibrates and runs every policy on one or more suites; one table each.

    Suites of samplers and of classifiers may stand side by side; sampler steps and seeds are for the
    former. Fitted exits are kept in the folder: a stopped run goes on where it was, and a run with
    other settings of the fit wants another folder.
    """
    from exitkit.benchmark.methods import methods_for
    from exitkit.benchmark.recipe import recipe_from_text
    from exitkit.benchmark.run import run_suite
    from exitkit.benchmark.suite import load_suite
    from exitkit.report import write_report

    names = [name.strip() for name in policies.split(",")]
    spent = recipe_from_text(recipe)
    suites = [load_suite(address) for address in addresses]
    suites = [suite.with_steps(steps) if steps else suite for suite in suites]
    # All names before the first fit, which may take hours.
    chosen = [methods_for(names, suite.use) for suite in suites]
    for suite, asked in zip(suites, chosen, strict=True):
        result = run_suite(
            suite,
            asked,
            budgets=(budget,),
            seeds=seeds,
            recipe=spent,
            folder=out / "exits",
            progress=not quiet,
        )
        folder = out / suite.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(f"{result}\n")
        result.to_json(folder / "comparison.json")
        typer.echo(f"{result}\n")
        typer.echo(f"report: {write_report(result, folder / 'report.html')}")
