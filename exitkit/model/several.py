"""The wrapped denoisers of a pipeline that has several, held as one."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

from torch import nn
from typing_extensions import override

from exitkit.config import ExitConfig
from exitkit.errors import ConfigError
from exitkit.execution.trace import Trace
from exitkit.execution.trajectory import Trajectory
from exitkit.heads.build import Heads
from exitkit.model.deciding import using
from exitkit.model.keeping import Keeping
from exitkit.model.wrapped import ExitModel
from exitkit.persistence.write import Exits
from exitkit.policies import Calibration, Policy
from exitkit.policies.registry import check_policy
from exitkit.summary import Exit


class Trajectories:
    """The trajectories of several denoisers in one loop.

    Arguments:
        opened: The trajectory of each.
    """

    def __init__(self, opened: Mapping[str, Trajectory]) -> None:
        self.opened = dict(opened)

    @property
    def trace(self) -> Trace | None:
        """Accounts of all calls so far; None before the first."""
        traces = [t.trace for t in self.opened.values() if t.trace is not None]
        return Trace.chain(traces) if traces else None


class ExitModels(Keeping, nn.ModuleDict):
    """The wrapped denoisers of a pipeline that has several, by component name.

    All verbs take it like one model: they share a policy and one budget, and costs are those of all of
    them together. `models["transformer"]` is one of them.

    Arguments:
        models: The wrapped models, at least one.
    """

    def __init__(self, models: Mapping[str, ExitModel]) -> None:
        super().__init__()
        self.update(models)

    def __getitem__(self, key: str) -> ExitModel:
        """One of them."""
        return cast(ExitModel, super().__getitem__(key))

    def values(self) -> ValuesView[ExitModel]:
        """The wrapped models."""
        return cast("ValuesView[ExitModel]", super().values())

    def items(self) -> ItemsView[str, ExitModel]:
        """Names and wrapped models."""
        return cast("ItemsView[str, ExitModel]", super().items())

    # what they share

    @property
    def _typical(self) -> ExitModel:
        """The one with the fewest exits: what it can do, all can."""
        return min(self.values(), key=lambda model: len(model.exits))

    @property
    def backbone(self) -> nn.ModuleDict:
        """The backbones, the same objects, by component name."""
        return nn.ModuleDict({name: model.backbone for name, model in self.items()})

    @property
    def exits(self) -> list[Exit]:
        """The exits of the one with the fewest; each names its own in `models[name].exits`."""
        return self._typical.exits

    @property
    def heads(self) -> Heads:
        """The heads of the one with the fewest exits: all are of one kind."""
        return self._typical.heads

    @property
    def exit_config(self) -> ExitConfig:
        """The config that all were wrapped with."""
        return self._typical.exit_config

    @property
    def fitted(self) -> dict[str, Any] | None:
        """Description of the sampler whose rollouts they were fitted on; None if not all were."""
        found = [model.fitted for model in self.values()]
        return None if None in found else found[0]

    @property
    def notices(self) -> set[str]:
        """Names of warnings that were given and are not repeated."""
        return self._typical.notices

    @property
    def policy(self) -> Policy:
        """The policy of all; assign another one at any time.

        Raises:
            ConfigError: If they have different ones.
        """
        found = {name: model.policy for name, model in self.items()}
        first, *others = found.values()
        if any(policy != first for policy in others):
            listed = ", ".join(f"{name}: {policy}" for name, policy in found.items())
            raise ConfigError(
                f"ExitModels.policy: the denoisers have different policies ({listed}). Read "
                "models[name].policy, or assign one policy to all: models.policy = policy."
            )
        return first

    @policy.setter
    def policy(self, policy: Policy) -> None:
        for model in self.values():  # all or none
            check_policy("models.policy", policy, len(model.exits))
        for model in self.values():
            model.policy = policy

    def using(self, policy: Policy) -> AbstractContextManager[None]:
        """Uses another policy for all of them for a while, in this thread or task alone.

        Arguments:
            policy: The policy meanwhile.

        Returns:
            The context.

        Raises:
            ConfigError: If it is no policy, or speaks of exits that one of them has not.
        """
        for model in self.values():
            check_policy("models.using", policy, len(model.exits))
        return using(tuple(self.values()), policy)

    @property
    def policies(self) -> dict[str, Policy]:
        """Policy of each; assign a mapping to set some."""
        return {name: model.policy for name, model in self.items()}

    @policies.setter
    def policies(self, policies: Mapping[str, Policy]) -> None:
        for name, policy in policies.items():
            self[name].policy = policy

    @property
    def calibrations(self) -> list[Calibration]:
        """What `calibrate` found since the last `fit`, in order."""
        return self._typical.calibrations

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that found the present policy of all; None if there is none."""
        found = [model.calibration for model in self.values()]
        return found[0] if all(c is found[0] for c in found) else None

    # running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing calls several denoisers at once.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"ExitModels: {', '.join(self)} are called by their pipeline, each at its own steps. Call "
            "the pipeline, or one of them: models[name](...)."
        )

    @contextmanager
    def trajectory(self, steps: int | None = None) -> Iterator[Trajectories]:
        """Opens the trajectory of each.

        Arguments:
            steps: How many steps are planned for all together.

        Yields:
            The trajectories.

        Raises:
            TrajectoryError: If one is open already.
        """
        with ExitStack() as stack:
            opened = {n: stack.enter_context(m.trajectory(steps)) for n, m in self.items()}
            yield Trajectories(opened)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Takes the exits of all out for a while: inside, the bare denoisers answer.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for model in self.values():
                stack.enter_context(model.suspended())
            yield

    @property
    def trace(self) -> Trace:
        """Accounts of the last trajectory of all of them."""
        return Trace.chain([model.trace for model in self.values()])

    @override
    def _exits(self) -> dict[str, Exits]:
        return {name: model._exits() for name, model in self.items()}

    # words

    def summary(self) -> str:
        """What is wrapped, where the exits are and what they cost, one denoiser after the other."""
        return "\n".join(f"{name}: {model.summary()}" for name, model in self.items())


Wrapped = ExitModel | ExitModels
"""What `wrap` returns: one wrapped model, or the denoisers of a pipeline that has several."""


def expect_wrapped(verb: str, model: object) -> None:
    """Refuses what has no exits: a bare network, or a pipeline.

    Arguments:
        verb: What is asked for, as the subject of the message.
        model: What was given.

    Raises:
        ConfigError: If it is not what `wrap` returned.
    """
    if isinstance(model, Wrapped):
        return
    kind = type(model).__name__
    if isinstance(getattr(model, "components", None), Mapping):
        do = f"Pass what ek.wrap returned: model = ek.wrap(pipe, ...); ek.{verb}(model, ...)."
        found = f"the pipeline {kind}"
    elif isinstance(model, nn.Module):
        do = "Wrap it first: model = ek.wrap(network, 'relative', example_inputs=(x, t))."
        found = f"{kind}, a network without exits"
    else:
        found, do = kind, "Pass what ek.wrap returned."
    raise ConfigError(f"{verb}: expected a wrapped model, got {found}. {do}")
