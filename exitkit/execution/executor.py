"""Runs a wrapped backbone: its exits, its gates, and the form of its outputs, in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.config import ExitConfig
from exitkit.errors import AlreadyWrappedError, ConfigError, TrajectoryError
from exitkit.execution import host
from exitkit.execution.calls import Call, CallReader
from exitkit.execution.completed import Completed, completing
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.execution.forward import Forward
from exitkit.execution.gate import CURRENT, GateSet
from exitkit.execution.guidance import UNGROUPED, GuidanceGroups
from exitkit.execution.known_forms import KnownForms
from exitkit.execution.output_template import OutputTemplate, Unwind
from exitkit.execution.patching import ForwardOverride
from exitkit.execution.recording import Analyst, ExitOutput, Recording
from exitkit.execution.replay import chosen
from exitkit.execution.suspension import Suspension
from exitkit.execution.trace import Trace
from exitkit.execution.trajectory import Trajectory
from exitkit.heads.build import Heads
from exitkit.modes.dtypes import ComputeDtype
from exitkit.policies import NeverExit, Policy
from exitkit.surgery.inputs import Binder, Bound, signature_of
from exitkit.surgery.spec import Plan


class Executor:
    """Runs one wrapped backbone.

    Arguments:
        backbone: The backbone. Its blocks get gates.
        plan: Its plan.
        heads: Its heads.
        config: Config of the exits.

    Attributes:
        layout: Exits and costs.
        reader: Reads arguments and outputs.
        forms: Forms of call in which carried exits are right.
    """

    def __init__(
        self,
        backbone: nn.Module,
        plan: Plan,
        heads: Heads,
        config: ExitConfig,
    ) -> None:
        first = next(heads.parameters(), None)
        device = first.device if first is not None else torch.device("cpu")
        self._dtype = ComputeDtype(backbone)
        self._place = (device, self._dtype())
        self.layout = ExitLayout.of(plan, heads)
        self.reader = CallReader(plan)
        self._backbone, self._heads, self._config = backbone, heads, config
        self._bind = Binder(signature_of(backbone.forward))
        self._templates: dict[tuple[object, ...], OutputTemplate | None] = {}
        self._usable = True
        self._suspension, self.forms = Suspension(), KnownForms()
        self._unwinds = all(point.landing is None for point in self.layout.points)
        # Last: whatever failed above has left the backbone untouched.
        self._gates: GateSet | None = GateSet(backbone, plan)

    @property
    def gates(self) -> GateSet:
        """The gates in the backbone.

        Raises:
            AlreadyWrappedError: If they were taken out.
            ConfigError: If they are suspended.
        """
        if self._gates is None or not self._usable:
            raise self._undone()
        if self._suspension.active:
            raise ConfigError(
                f"The exits of this {type(self._backbone).__name__} are suspended: inside `with "
                "model.suspended():` only the bare backbone runs. Do this outside of it."
            )
        return self._gates

    def _undone(self) -> AlreadyWrappedError:
        return AlreadyWrappedError(
            f"This wrapped {type(self._backbone).__name__} was undone by unwrap(). Use the "
            "backbone itself, or wrap it again with ek.wrap(backbone, ...)."
        )

    @property
    def released(self) -> bool:
        """Whether the gates were taken out, or that was begun: no run may count on them."""
        return not self._usable

    @property
    def suspended(self) -> bool:
        """Whether the backbone is bare for a while."""
        return self._usable and self._suspension.active

    def suspension(self, override: ForwardOverride | None) -> AbstractContextManager[None]:
        """Keeps the backbone bare inside.

        Arguments:
            override: What sends the backbone's own calls through the exits, or None.

        Raises:
            AlreadyWrappedError: If the gates were taken out.
        """
        if self._gates is None or not self._usable:
            raise self._undone()
        return self._suspension.entered(self._gates, override)

    @property
    def emptied(self) -> bool:
        """Whether no gate is left in the backbone."""
        return self._gates is None

    @property
    def analyst(self) -> Analyst:
        """Runs the backbone for training and for looking at exits."""
        return Analyst(self._backbone, self.layout, self.gates, self.reader)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        """Arguments by the names of the backbone's parameters."""
        return self._bind(args, kwargs)

    def run(
        self,
        through: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        policy: Policy,
        trajectory: Trajectory | None,
    ) -> tuple[Any, Trace]:
        """Runs the backbone with exits.

        Arguments:
            through: The backbone, or its own forward where its hooks have fired already.
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.
            policy: Decides who leaves.
            trajectory: State of earlier steps, or None.

        Returns:
            The backbone's own output type, each row from the exit where it left; and the accounts.

        Raises:
            ShapeError: If the batch is empty.
        """
        with (
            host.HostReads() as reads,
            trajectory.attempt() if trajectory is not None else nullcontext(),
        ):
            return self._run(through, args, kwargs, policy, trajectory, reads)

    def _run(
        self,
        through: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        policy: Policy,
        trajectory: Trajectory | None,
        reads: host.HostReads,
    ) -> tuple[Any, Trace]:
        gates, bound = self.gates, self.bind(args, kwargs)
        call = self._call(bound)
        if not isinstance(policy, NeverExit):
            self._heads.sizes.tell(self.layout.plan.class_name, call.noisy.shape[1:])
        branch = None
        if trajectory is not None:
            key = (call.noisy.shape, call.noisy.dtype, call.noisy.device)
            branch = trajectory.begin(call.timestep, call.batch, call.noisy.device, key)
            branch.follow(policy)
        template = self._templates.get(call.form)
        clock = (trajectory.step, trajectory.steps) if trajectory else (None, None)
        head, started = completing(self._heads, policy), time.perf_counter()
        if branch is not None and head is not None:
            groups = self._groups(call, trajectory)
            step = Completed(self.layout, head, policy, call, branch, clock, groups)
            output = step.run(through, bound, template, self.reader)
            if call.form not in self._templates:
                self._templates[call.form] = OutputTemplate.learn(output, self.reader.output)
            return output, self._booked(step.trace, started, reads, call, trajectory)
        if self._heads.completion is not None:
            policy = NeverExit()  # nothing to complete a step from: every row runs
        if branch is not None and self.layout.carried and not isinstance(policy, NeverExit):
            self.forms.check(self.analyst, bound, through)
        run = Forward(
            self.layout,
            gates,
            policy,
            call,
            branch,
            clock,
            may_unwind=lambda: (
                template is not None
                and self._unwinds
                and not gates.watched(through is not self._backbone)
            ),
            groups=self._groups(call, trajectory),
        )
        token = CURRENT.set(run)
        try:
            output = through(*args, **kwargs)
        except Unwind:
            output = None
        finally:
            CURRENT.reset(token)
        if call.form not in self._templates:
            self._templates[call.form] = OutputTemplate.learn(output, self.reader.output)
        output = run.finish(output, template)
        return output, self._booked(run.trace, started, reads, call, trajectory)

    def _booked(
        self,
        trace: Trace,
        started: float,
        reads: host.HostReads,
        call: Call,
        trajectory: Trajectory | None,
    ) -> Trace:
        """The accounts of a call with its time, or those of its whole trajectory."""
        trace.seconds = time.perf_counter() - started
        trace.host_checks = reads.count
        if trajectory is None:
            return trace
        trajectory.decided(trace.calls[0].depth, call.noisy)
        return trajectory.book(trace)

    def all_exits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExitOutput:
        """Runs the backbone to the end and gives the output of every exit.

        Arguments:
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.

        Returns:
            The outputs, with gradients as the config's loss asks for them.

        Raises:
            TrajectoryError: If the exits are carried.
        """
        if self._heads.kind.needs_trajectory:
            raise TrajectoryError(
                f"Exits of kind {self._heads.kind.name!r} complete a row with what its last full steps "
                "left, so they have no output on a single input. Fit them with ek.fit(model, sampler)."
            )
        loss = self._config.loss
        return self.analyst.all_exits(
            self.bind(args, kwargs),
            gradients=loss.train_backbone,
            detach_hidden=loss.detach_hidden,
            final=self._heads.final,
        )

    def _groups(self, call: Call, trajectory: Trajectory | None) -> GuidanceGroups:
        if self._config.guidance != "tied":
            return UNGROUPED
        given = trajectory.depths_of_step(call.noisy) if trajectory else None
        return GuidanceGroups.of(call.noisy, None if given is None else given.to(call.noisy.device))

    def _call(self, bound: Bound) -> Call:
        batch, noisy, timestep = self.reader.read(bound)
        self._follow(noisy.device)

        def replay(point: PlacedExit, value: Tensor, rows: Tensor) -> Tensor:
            part = chosen(bound, self.layout.plan, rows, batch)
            return self.analyst.replay(part, value, rows.numel(), point)

        def record() -> Recording:
            return self.analyst.record(bound)

        return Call(batch, noisy, timestep, self.reader.form(bound, noisy), replay, record)

    def _follow(self, device: torch.device) -> None:
        """Moves the heads after a backbone that a pipeline has moved, or an offloading hook."""
        place = (device, self._dtype())
        if place != self._place:
            self._heads.to(device=device, dtype=place[1])
            self._place = place

    def release(self) -> None:
        """Takes the gates out of the backbone; where that was interrupted, a second call ends it.

        Raises:
            AlreadyWrappedError: If that was done before.
        """
        if self._gates is None:
            raise self._undone()
        self._usable = False
        self._suspension.forget()
        self._gates.remove()
        self._gates = None
