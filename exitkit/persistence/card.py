"""The model card that is written beside saved exits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from exitkit.persistence.settings import Settings
from exitkit.policies import Calibration, Policy

CARD = "README.md"


@dataclass(frozen=True)
class Base:
    """What a backbone says of where it comes from.

    Attributes:
        class_name: Its class.
        name: Its name on a hub, or its folder; None if it does not know.
        license: Its licence; None if it does not know.
    """

    class_name: str
    name: str | None = None
    license: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the name is one of a hub, owner/name."""
        return self.name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", self.name) is not None


def base_of(backbone: nn.Module) -> Base:
    """Reads what a backbone says of where it comes from; nothing is downloaded.

    Arguments:
        backbone: Of timm, diffusers, transformers or anything else.

    Returns:
        What is known.
    """
    told = getattr(backbone, "pretrained_cfg", None)  # timm
    if isinstance(told, Mapping):
        return Base(type(backbone).__name__, told.get("hf_hub_id"), told.get("license"))
    place = getattr(getattr(backbone, "config", None), "_name_or_path", None)
    if not isinstance(place, str) or not place:
        return Base(type(backbone).__name__)
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", place)
    name = f"{cached[1]}/{cached[2]}" if cached else place
    return Base(type(backbone).__name__, name, _license(Path(place)))


def _license(folder: Path) -> str | None:
    """The licence in the card of a folder, or of the folder around it."""
    for place in (folder, folder.parent):
        card = place / CARD
        text = card.read_text(errors="replace") if card.is_file() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*(\S+)\s*$", front[1] if front else "", re.MULTILINE)
        if found:
            return found[1]
    return None


def text(settings: Settings, policy: Policy, calibration: Calibration | None, base: Base) -> str:
    """The card of one model.

    Arguments:
        settings: What exitkit.json says.
        policy: The policy.
        calibration: The calibration that found it, or None.
        base: The backbone.

    Returns:
        Markdown with a front matter.
    """
    trained = settings.config["loss"]["train_backbone"]
    what = (
        "Exits, and the weights of the backbone that was trained with them," if trained else "Exits"
    )
    rows = [
        ("base", _named(base)),
        ("preset", f"`{settings.config['preset']}`"),
        ("exits", ", ".join(f"`{path}`" for path in settings.exits)),
        *_facts(policy, calibration),
        *([("fitted on", _sampler(settings.fitted))] if settings.fitted else []),
        ("saved with", ", ".join(f"{n} {v}" for n, v in settings.versions.items())),
    ]
    return "\n".join(
        [
            *_front([base]),
            f"# Exits for {base.class_name}",
            "",
            f"{what} for {_named(base)}: rows of a batch leave the network early, by the policy below. "
            + ("" if trained else "The backbone itself is not in this folder."),
            "",
            *_table(rows),
            *_loading(
                "backbone", "backbone", "the network or the pipeline that the exits belong to"
            ),
            *_licenses([base]),
        ]
    )


def text_of_several(parts: Mapping[str, tuple[Policy, Calibration | None, Base]]) -> str:
    """The card of the denoisers of a pipeline.

    Arguments:
        parts: Policy, calibration and backbone of each.

    Returns:
        Markdown with a front matter.
    """
    policy, calibration, _ = next(iter(parts.values()))
    bases = [base for _, _, base in parts.values()]
    rows = [(f"`{name}`", _named(base)) for name, (_, _, base) in parts.items()]
    return "\n".join(
        [
            *_front(bases),
            f"# Exits for {len(parts)} denoisers of a pipeline",
            "",
            "Each has a folder here; costs are those of all of them together. The denoisers themselves are "
            "not in these folders.",
            "",
            *_table([*rows, *_facts(policy, calibration)]),
            *_loading("pipe", "pipeline", "the diffusers pipeline that the exits belong to"),
            *_licenses(bases),
        ]
    )


def _named(base: Base) -> str:
    return base.class_name if base.name is None else f"{base.class_name} of `{base.name}`"


def _facts(policy: Policy, calibration: Calibration | None) -> list[tuple[str, str]]:
    facts = [("policy", f"`{policy}`")]
    if calibration is None:
        return [*facts, ("cost", "not measured: call `ek.calibrate`")]
    relative = calibration.relative
    share = "" if relative is None else f", {relative:.2%} of the samples' spread"
    facts += [
        (
            "cost",
            f"{calibration.cost:.4f} of the full network's multiply-accumulates, heads included",
        ),
        ("distance to the full network", f"{calibration.error:.4g}{share}"),
    ]
    if calibration.seeds:
        facts.append(("measured on", f"seeds {calibration.seeds[0]} to {calibration.seeds[1]}"))
    if calibration.certificate is not None:
        facts.append(("certified", " ".join(str(calibration.certificate).split())))
    return facts


def _sampler(fitted: Mapping[str, object]) -> str:
    scheduler = fitted.get("scheduler")
    name = scheduler.get("class") if isinstance(scheduler, Mapping) else scheduler
    return f"rollouts of {name or 'a sampler'}, {fitted.get('steps')} steps"


def _front(bases: list[Base]) -> list[str]:
    names = dict.fromkeys(base.name for base in bases if base.on_hub)
    licenses = {base.license for base in bases}
    license = next(iter(licenses)) if len(licenses) == 1 else None
    return [
        "---",
        "library_name: exitkit",
        "tags:",
        "- early-exit",
        *(["base_model:", *(f"- {name}" for name in names)] if names else []),
        *([f"license: {license}"] if license else []),
        "---",
        "",
    ]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value.replace('|', ', ')} |" for name, value in rows),
        "",
    ]


def _loading(variable: str, kind: str, what: str) -> list[str]:
    return [
        "## How to load",
        "",
        "```python",
        "import exitkit as ek  # pip install exitkit-torch",
        "",
        f'model = ek.load({variable}, "PATH OR NAME OF THIS FOLDER")  # {what}',
        "```",
        "",
        f"The {kind} runs with its exits from then on; `ek.unwrap(model)` takes them out again.",
        "",
    ]


def _licenses(bases: list[Base]) -> list[str]:
    known = {base.class_name: base.license for base in bases}
    told = "; ".join(f"{name}: {found or 'not known here'}" for name, found in known.items())
    return [
        "## Licence",
        "",
        f"Exits are fitted to what the base computes; its licence applies to their use. {told}.",
        "",
    ]
