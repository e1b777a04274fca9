"""Every method by name: the exits it is built with, and the policy that is calibrated for it.

Methods with the same exits share one fitted model, so that policies are compared on the same heads.
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
    ConfidenceThreshold,
    EntropyThreshold,
    FirstBlockSimilarity,
    Interval,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
    policy_from_dict,
)

Fit = Literal["data", "rollouts", "none"]
Use = Literal["generation", "classification"]


@dataclass(frozen=True)
class Exits:
    """A way to build and to fit exits.

    Attributes:
        name: Name, also of the folder where fitted exits are kept.
        config: Preset or config.
        fit: On training `data`, on `rollouts` of the model itself, or not at all (`none`).
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
class Method:
    """Exits and a policy: a row of the comparison.

    Attributes:
        name: Name.
        exits: Its exits.
        policy: What `calibrate` is asked for: a family by name, a policy whose tunable field is
            searched, or a function from the wrapped model to one.
        source: Where it comes from.
        use: What it is run on.
    """

    name: str
    exits: Exits
    policy: str | Policy | Callable[[ExitModel], Policy | str]
    source: str
    use: Use = "generation"

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


def _classifier(name: str, exits: Exits, policy: str | Policy, source: str) -> Method:
    return Method(name, exits, policy, source, "classification")


PAPER = Exits("paper", "paper")
OFFICIAL = Exits("official", "official")
RELATIVE = Exits("relative", "relative")
BERXIT = Exits("berxit", "berxit")
CALM_EXITS = Exits("calm", "calm")
PABEE = Exits("pabee", "pabee")
BRANCHYNET = Exits("branchynet", "branchynet")
CARRIED = Exits("carried", "carried", "rollouts")
# Plain reuse of what the last full step added: heads that were never fitted do just that.
PLAIN = Exits(
    "plain",
    ExitConfig(
        preset="plain",
        exits="first",
        output=OutputConfig(kind="carried", knots=0, order=1),
        loss=LossConfig(target="model", uncertainty_target="relative", weighting="uniform"),
    ),
    "none",
)
PLAIN_ALL = Exits("plain_all", PLAIN.config, "none", {"exits": None})

METHODS: tuple[Method, ...] = (
    Method("adadiff paper", PAPER, UncertaintyThreshold(0.08), "arXiv 2309.17074"),
    Method("adadiff official", OFFICIAL, _own, "its released code"),
    Method("adadiff relative", RELATIVE, "threshold", "exitkit"),
    Method("berxit", BERXIT, LearningToExit(0.1), "EACL 2021"),
    Method("calm meta", CALM_EXITS, CALM("meta", 0.9), "arXiv 2207.07061"),
    Method("calm cosine", CALM_EXITS, CALM("cosine", 0.9), "arXiv 2207.07061"),
    Method("calm change", CALM_EXITS, CALM("change", 0.9), "its softmax gap for diffusion"),
    Method("calm decayed", CALM_EXITS, CALM("meta", 0.9, decay=4.0), "arXiv 2207.07061"),
    Method("calm batch", CALM_EXITS, CALM("meta", 0.9, whole_batch=True), "its released code"),
    Method("pabee", PABEE, Patience(2, tolerance=0.1), "arXiv 2006.04152"),
    Method("pabee batch", PABEE, Patience(2, tolerance=0.1, whole_batch=True), "its released code"),
    Method("static", PAPER, "static", "arXiv 2309.17074, static early exit"),
    Method("ase", PAPER, "ase", "arXiv 2408.05927"),
    Method("schedule", RELATIVE, "schedule", "exitkit, dynamic programming"),
    Method("corrected", RELATIVE, "corrected", "exitkit"),
    Method("oracle", RELATIVE, Oracle(delta=0.1), "bound, looks at the full model"),
    Method("oracle priced", RELATIVE, _priced, "bound within a budget"),
    Method("first block cache", PLAIN, FirstBlockSimilarity(0.05), "diffusers hooks"),
    Method("teacache", PLAIN, FirstBlockSimilarity(0.05, accumulate=True), "arXiv 2411.19108"),
    Method("deepcache", PLAIN, Interval(2), "arXiv 2312.00858"),
    Method("router", PLAIN_ALL, "router", "arXiv 2406.01733"),
    Method("carried", CARRIED, "threshold", "exitkit, refreshed by uncertainty"),
    Method("carried interval", CARRIED, "interval", "exitkit, fixed interval"),
    Method("carried schedule", CARRIED, "schedule", "exitkit, budgeted schedule"),
    _classifier("branchynet entropy", BRANCHYNET, EntropyThreshold(0.1), "arXiv 1709.01686"),
    _classifier("branchynet confidence", BRANCHYNET, ConfidenceThreshold(0.9), "largest softmax"),
    _classifier("branchynet static", BRANCHYNET, "static", "one exit for all"),
    _classifier("calm margin", CALM_EXITS, CALM("margin", 0.9), "arXiv 2207.07061"),
    _classifier(
        "calm margin batch", CALM_EXITS, CALM("margin", 0.9, whole_batch=True), "its released code"
    ),
    _classifier("calm cosine", CALM_EXITS, CALM("cosine", 0.9), "arXiv 2207.07061"),
    _classifier(
        "calm cosine batch", CALM_EXITS, CALM("cosine", 0.9, whole_batch=True), "its released code"
    ),
    _classifier("calm meta", CALM_EXITS, CALM("meta", 0.9), "arXiv 2207.07061"),
    _classifier(
        "calm meta batch", CALM_EXITS, CALM("meta", 0.9, whole_batch=True), "its released code"
    ),
    _classifier("berxit", BERXIT, LearningToExit(0.1), "EACL 2021"),
    _classifier("pabee", PABEE, Patience(2), "arXiv 2006.04152"),
    _classifier("pabee batch", PABEE, Patience(2, whole_batch=True), "its released code"),
    _classifier("uncertainty", RELATIVE, UncertaintyThreshold(0.1), "exitkit, frozen backbone"),
    _classifier("uncertainty static", RELATIVE, "static", "one exit for all, frozen backbone"),
    _classifier("oracle", RELATIVE, Oracle(delta=1.0), "bound, looks at the full model"),
    _classifier("adadiff paper", PAPER, UncertaintyThreshold(0.1), "arXiv 2309.17074"),
)
"""All methods, in the order of tables."""


def methods_for(names: Sequence[str] = ("*",), use: Use = "generation") -> list[Method]:
    """Methods by name or wildcard.

    Arguments:
        names: Names or wildcards such as `"calm*"`.
        use: What they are run on.

    Returns:
        The methods, in the order of the catalogue.

    Raises:
        ConfigError: If a name matches none.
    """
    catalogue = [method for method in METHODS if method.use == use]
    known = [method.name for method in catalogue]
    chosen: set[str] = set()
    for name in names:
        found = fnmatch.filter(known, name)
        if not found:
            raise ConfigError(
                f"There is no method {name!r} for {use} (methods: {', '.join(known)})."
                f"{suggest(name, known)}"
            )
        chosen.update(found)
    return [method for method in catalogue if method.name in chosen]
