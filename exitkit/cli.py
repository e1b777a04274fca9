"""The command line: `exitkit inspect`, `exitkit compare`, `exitkit contenders`, `exitkit adapters`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from exitkit.evaluation.results import Comparison

app = typer.Typer(
    name="exitkit",
    help="Exits for diffusion backbones and classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_STUDY = typer.Argument(
    help="Address of a study, module:name, such as examples.reproduction.models.studies:uvit."
)


@app.command()
def inspect(
    address: Annotated[
        str, typer.Argument(help="timm/NAME, or the address of a study, module:name.")
    ],
) -> None:
    """Shows where a backbone can be left, and why not elsewhere."""
    from exitkit.benchmark import load_study
    from exitkit.benchmark.timm_models import PREFIX, timm_model
    from exitkit.pipelines.verbs import inspect as look

    if address.startswith(PREFIX):
        network, inputs = timm_model(address.removeprefix(PREFIX))
        typer.echo(str(look(network, example_inputs=inputs)))
        return
    found = load_study(address)
    typer.echo(str(look(found.backbone(), example_inputs=found.example_inputs)))


@app.command()
def contenders(
    names: Annotated[list[str] | None, typer.Argument(help="Names or wildcards.")] = None,
    classifiers: Annotated[bool, typer.Option(help="Those for classifiers.")] = False,
) -> None:
    """Lists what `compare` can run, and where it comes from."""
    from exitkit.benchmark import CLASSIFIERS, CONTENDERS, contenders_for

    for found in contenders_for(names or ["*"], CLASSIFIERS if classifiers else CONTENDERS):
        typer.echo(f"{found.name:21} exits: {found.exits.name:10} {found.source}")


@app.command()
def adapters(pattern: Annotated[str, typer.Argument(help="A wildcard.")] = "*") -> None:
    """Lists the architecture adapters that are known."""
    from exitkit.surgery.registry import list_adapters

    for name in list_adapters(pattern):
        typer.echo(name)


@app.command()
def compare(
    addresses: Annotated[list[str], _STUDY],
    policies: Annotated[
        str, typer.Option(help="Names or wildcards of contenders, separated by commas.")
    ] = "*",
    budget: Annotated[float, typer.Option(help="Cost to calibrate to, in (0, 1].")] = 0.5,
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 50,
    seeds: Annotated[int, typer.Option(help="Seeds to compare on.")] = 64,
    fit_steps: Annotated[int, typer.Option(help="Optimiser steps of each kind of exits.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Rows of a training step.")] = 32,
    calibration_seeds: Annotated[int, typer.Option(help="Held-out samples.")] = 16,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves the default.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for fitted exits, tables and reports.")] = Path(
        "outputs/compare"
    ),
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Fits, calibrates and runs every policy on one or more studies; one table each.

    Studies of samplers and of classifiers may stand side by side; sampler steps and seeds are for the
    former. Fitted exits are kept in the folder: a stopped run goes on where it was, and a run with
    other settings of the fit wants another folder.
    """
    import torch

    from exitkit.benchmark import (
        CLASSIFIERS,
        CONTENDERS,
        ClassStudy,
        contenders_for,
        load_study,
        run_class_study,
        run_study,
    )

    if threads:
        torch.set_num_threads(threads)
    names = [name.strip() for name in policies.split(",")]
    found = [load_study(address) for address in addresses]
    # All names before the first fit, which may take hours.
    chosen = [
        contenders_for(names, CLASSIFIERS if isinstance(s, ClassStudy) else CONTENDERS)
        for s in found
    ]
    for study, contenders in zip(found, chosen, strict=True):
        folder, kept = out / study.name, out / "exits"
        if isinstance(study, ClassStudy):
            classes = run_class_study(
                study,
                contenders,
                budgets=(budget,),
                fit_steps=fit_steps,
                batch_size=batch_size,
                folder=kept,
                progress=not quiet,
            )
            _leave(classes, folder)
            continue
        result = run_study(
            study,
            contenders,
            budget=budget,
            sampler_steps=steps,
            seeds=seeds,
            fit_steps=fit_steps,
            batch_size=batch_size,
            calibration_seeds=calibration_seeds,
            folder=kept,
            progress=not quiet,
        )
        _leave(result, folder)


def _leave(result: Comparison, folder: Path) -> None:
    """Prints a comparison and leaves it as table, as data and as a report."""
    from exitkit.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(f"{result}\n")
    result.to_json(folder / "comparison.json")
    typer.echo(f"{result}\n")
    typer.echo(f"report: {write_report(result, folder / 'report.html')}")
