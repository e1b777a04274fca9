"""Every contender by name: the exits it is built with, and the policy that is calibrated for it.

Contenders with the same exits share one fitted model, so that policies are compared on the same heads.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from exitkit.config import ExitConfig, LossConfig, OutputConfig, resolve_config
from exitkit.errors import ConfigError, suggest
from exitkit.model import ExitModel
from exitkit.policies import (
    CALM,
    FirstBlockSimilarity,
    Interval,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
    policy_from_dict,
)

Fit = Literal["data", "walks", "none"]


@dataclass(frozen=True)
class Exits:
    """A way to build and to fit exits.

    Attributes:
        name: Name, also of the folder where fitted exits are kept.
        config: Preset or config.
        fit: On training `data`, on `walks` of the model itself, or not at all (`none`).
        options: Further fields of `ExitConfig`.
    """

    name: str
    config: str | ExitConfig
    fit: Fit = "data"
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def resolved(self) -> ExitConfig:
        """The config with its options."""
        return resolve_config(self.config, **self.options)


@dataclass(frozen=True)
class Contender:
    """A row of the comparison.

    Attributes:
        name: Name.
        exits: Its exits.
        policy: What `calibrate` is asked for: a family by name, a policy whose tunable field is
            searched, or a function from the wrapped model to one.
        source: Where it comes from.
    """

    name: str
    exits: Exits
    policy: str | Policy | Callable[[ExitModel], Policy | str]
    source: str

    def asked(self, model: ExitModel) -> str | Policy:
        """What is asked of `calibrate` for a model."""
        if callable(self.policy) and not isinstance(self.policy, str | Policy):
            return self.policy(model)
        return self.policy


def _own(model: ExitModel) -> Policy:
    policy = model.exit_config.policy
    assert policy is not None
    return policy_from_dict(policy)


def _priced(model: ExitModel) -> Policy:
    return Oracle(price=1.0, costs=tuple(min(1.0, e.cost) for e in model.exits))


PAPER = Exits("paper", "paper")
OFFICIAL = Exits("official", "official")
RELATIVE = Exits("relative", "relative")
BERXIT = Exits("berxit", "berxit")
CALM_EXITS = Exits("calm", "calm")
PABEE = Exits("pabee", "pabee")
CARRIED = Exits("carried", "carried", "walks")
# Plain reuse of what the last full step added: heads that were never fitted do just that.
PLAIN = Exits(
    "plain",
    ExitConfig(
        preset="plain",
        exits=(1,),
        output=OutputConfig(kind="carried", knots=0, order=1),
        loss=LossConfig(target="model", uncertainty_target="relative", weighting="uniform"),
    ),
    "none",
)
PLAIN_ALL = Exits("plain_all", PLAIN.config, "none", {"exits": None})

CONTENDERS: tuple[Contender, ...] = (
    Contender("adadiff paper", PAPER, UncertaintyThreshold(0.08), "arXiv 2309.17074"),
    Contender("adadiff official", OFFICIAL, _own, "its released code"),
    Contender("adadiff relative", RELATIVE, "threshold", "exitkit"),
    Contender("berxit", BERXIT, LearningToExit(0.1), "EACL 2021"),
    Contender("calm meta", CALM_EXITS, CALM("meta", 0.9), "arXiv 2207.07061"),
    Contender("calm cosine", CALM_EXITS, CALM("cosine", 0.9), "arXiv 2207.07061"),
    Contender("calm change", CALM_EXITS, CALM("change", 0.9), "its softmax gap for diffusion"),
    Contender("calm decayed", CALM_EXITS, CALM("meta", 0.9, decay=4.0), "arXiv 2207.07061"),
    Contender("calm batch", CALM_EXITS, CALM("meta", 0.9, whole_batch=True), "its released code"),
    Contender("pabee", PABEE, Patience(2, tolerance=0.1), "arXiv 2006.04152"),
    Contender(
        "pabee batch", PABEE, Patience(2, tolerance=0.1, whole_batch=True), "its released code"
    ),
    Contender("static", PAPER, "static", "arXiv 2309.17074, static early exit"),
    Contender("ase", PAPER, "ase", "arXiv 2408.05927"),
    Contender("schedule", RELATIVE, "schedule", "exitkit, dynamic programming"),
    Contender("corrected", RELATIVE, "corrected", "exitkit"),
    Contender("oracle", RELATIVE, Oracle(delta=0.1), "bound, looks at the full model"),
    Contender("oracle priced", RELATIVE, _priced, "bound within a budget"),
    Contender("first block cache", PLAIN, FirstBlockSimilarity(0.05), "diffusers hooks"),
    Contender("teacache", PLAIN, FirstBlockSimilarity(0.05, accumulate=True), "arXiv 2411.19108"),
    Contender("deepcache", PLAIN, Interval(2), "arXiv 2312.00858"),
    Contender("router", PLAIN_ALL, "router", "arXiv 2406.01733"),
    Contender("carried", CARRIED, "threshold", "exitkit, refreshed by uncertainty"),
    Contender("carried interval", CARRIED, "interval", "exitkit, fixed interval"),
    Contender("carried schedule", CARRIED, "schedule", "exitkit, budgeted schedule"),
)
"""All contenders for diffusion, in the order of tables."""


def contenders_for(
    names: Sequence[str] = ("*",), catalogue: Sequence[Contender] = CONTENDERS
) -> list[Contender]:
    """Contenders by name or wildcard.

    Arguments:
        names: Names or wildcards such as `"calm*"`.
        catalogue: Contenders to choose from.

    Returns:
        The contenders, in the order of the catalogue.

    Raises:
        ConfigError: If a name matches none.
    """
    known = [c.name for c in catalogue]
    chosen: set[str] = set()
    for name in names:
        found = fnmatch.filter(known, name)
        if not found:
            raise ConfigError(
                f"There is no contender {name!r} (contenders: {', '.join(known)})."
                f"{suggest(name, known)}"
            )
        chosen.update(found)
    return [c for c in catalogue if c.name in chosen]
