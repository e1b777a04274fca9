"""From a TOML file and a command line to an experiment."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exitkit.errors import ConfigError

from .config import Experiment


def load(path: str | Path, changes: Sequence[str] = ()) -> Experiment:
    """Reads an experiment.

    Arguments:
        path: A TOML file; or the name of one in this folder, such as `cifar10`.
        changes: Settings to replace, such as `training.steps=100`; values are TOML, or plain text.

    Returns:
        The experiment.

    Raises:
        ConfigError: If the file is not there, or a setting is unknown or out of range.
    """
    file = Path(path)
    if not file.suffix:
        file = Path(__file__).with_name(f"{file.name}.toml")
    try:
        data = tomllib.loads(file.read_text())
    except FileNotFoundError as error:
        known = sorted(p.stem for p in Path(__file__).parent.glob("*.toml"))
        raise ConfigError(f"{file} is not there. Shipped: {', '.join(known)}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}.") from error
    for change in changes:
        _replace(data, change)
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'experiment'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(f"{file}: {problems}.") from error


def _replace(data: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"--set {change}: expected section.field=value.")
    *sections, field = name.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    try:
        data[field] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        data[field] = text  # a path or a name, which TOML would want in quotes


def arguments(program: str, story: str | None) -> argparse.ArgumentParser:
    """The part of the command line that all programs share.

    Arguments:
        program: Name of the module.
        story: Its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.reproduction.full.{program}",
        description=(story or "").split("\n")[0],
    )
    parser.add_argument("config", help="a TOML file, or the name of a shipped one: cifar10, ...")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--data", help="folder of the images, or of the latents")
    return parser


def from_arguments(args: argparse.Namespace, *changes: str) -> Experiment:
    """The experiment that a command line names.

    Arguments:
        args: What `arguments` parsed.
        changes: Further settings to replace, before those of `--set`.
    """
    experiment = load(args.config, [*changes, *args.set])
    if args.data is None:
        return experiment
    section = "source" if experiment.latents is None else "latents"
    return load(args.config, [*changes, *args.set, f"{section}.root={args.data}"])
