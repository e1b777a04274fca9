"""State that one step leaves for a later one, opened by the user and dropped when it no longer fits.

A trajectory covers all steps of one generation. Whoever drives the sampler announces its steps; where
nobody does, calls that repeat the timestep of the call before are further branches of the same step
(the unconditional call of classifier-free guidance). State belongs to a row of a branch, which is the
place of a call among those of its step with the same batch, shape and device; it is dropped where a step
passes without that branch, and, told by timesteps, where the direction of the row's time reverses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError, TrajectoryError, UnfittedWarning
from exitkit.execution import host
from exitkit.execution.branch import Branch
from exitkit.execution.direction import followed
from exitkit.execution.trace import Trace
from exitkit.heads.build import Heads
from exitkit.policies import NeverExit, Policy, Schedule

_Place = tuple[tuple[object, ...], int]
"""What kind of call, and the how manieth of its step."""

_MOST = 16
"""Calls of one step, where timesteps alone tell: those that repeat for ever are steps of a stream."""


class Trajectory:
    """All steps of one generation.

    Arguments:
        steps: How many steps are planned, when known.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps
        self.step = -1
        self.trace: Trace | None = None
        self._branches: dict[_Place, Branch] = {}
        self._seen: dict[tuple[object, ...], int] = {}  # calls of this step by key
        self._branch = 0
        self._last: Tensor | None = None
        self._directions: tuple[float, ...] = ()
        self._decided: tuple[Tensor, Tensor] | None = None
        self._clock: int | None = None  # number of the step, where somebody announces steps

    def begin(
        self, timestep: Tensor | None, batch: int, device: torch.device, key: tuple[object, ...]
    ) -> Branch:
        """Starts a call and returns the state that belongs to it.

        Arguments:
            timestep: Timestep of each row, with shape (B,), or None.
            batch: Rows of the batch.
            device: Where the rows are.
            key: Shape, dtype and device of the noisy input: calls that differ in it share no state.

        Returns:
            The branch of this call.
        """
        if self._clock is not None:
            begins = self._clock != self.step
        else:
            begins = self._moves(timestep) or self._branch + 1 >= _MOST
        if begins:
            self._begin_step()
        else:
            self._branch += 1
        self._last = timestep
        place = (key, self._seen.get(key, 0))
        self._seen[key] = place[1] + 1
        if place not in self._branches:
            age = torch.zeros(batch, dtype=torch.long, device=device)
            self._branches[place] = Branch(self._branch, age)
        branch = self._branches[place]
        branch.number = self._branch
        return branch

    def _begin_step(self) -> None:
        """Goes to the next step, or the one announced, without what the last step did not use."""
        following = self.step < 0 or self._clock is None or self._clock == self.step + 1
        used = self._seen if following else {}
        self._branches = {
            (key, n): branch for (key, n), branch in self._branches.items() if n < used.get(key, 0)
        }
        self.step = self.step + 1 if self._clock is None else self._clock
        self._branch, self._seen = 0, {}

    def _moves(self, timestep: Tensor | None) -> bool:
        """Whether a call begins a step, told by timesteps: nobody announces steps."""
        if timestep is None or self._last is None:
            return True
        if timestep.shape == self._last.shape:
            moves = timestep - self._last
        else:  # other rows: what tells is the noisiest
            moves = (timestep.amax() - self._last.amax().to(timestep.device))[None]
        if not host.flag(moves.any()):
            return False
        signs = host.values(moves.sign())
        directions, turned = followed(self._directions, signs)
        if len(turned) == len(signs):
            self.reset()
            return True
        self._directions = directions
        if turned:
            # Of another number of rows, nobody knows which are those that turned.
            self._branches = {
                at: b for at, b in self._branches.items() if b.age.numel() == len(signs)
            }
            for branch in self._branches.values():
                branch.forget(turned)
        return True

    def next_step(self) -> None:
        """Announces a step: the next call begins it, and the calls behind that are its branches.

        Whoever drives the sampler knows. Once a step was announced, timesteps are not compared.
        """
        self._clock = 0 if self._clock is None else self._clock + 1

    def end_step(self) -> None:
        """Announces that a step is over, also one in which this network was not called."""
        self._clock = 1 if self._clock is None else self._clock + 1

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Makes a call in the body that fails one that was never made: it can be made again.

        Yields:
            Nothing.
        """
        # A policy writes its state during the call; ages and memories change once it is through.
        branches = {
            place: replace(branch, state=dict(branch.state))
            for place, branch in self._branches.items()
        }
        before = {**vars(self), "_branches": branches, "_seen": dict(self._seen)}
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def decided(self, depths: Tensor, noisy: Tensor) -> None:
        """Remembers the depths, (B,), and the noisy input of the call that began last."""
        if self._branch == 0:
            self._decided = depths, noisy

    def depths_of_step(self, noisy: Tensor) -> Tensor | None:
        """Depths that an earlier call of the step decided for this noisy input, (B,), or None.

        Samplers such as Heun's repeat a timestep too, but on another input.
        """
        if self._branch == 0 or self._decided is None:
            return None
        depths, seen = self._decided
        return depths if host.same(seen, noisy) else None

    def reset(self) -> None:
        """Drops all state; the accounts stay, and steps that are announced go on being counted."""
        self._branches, self._seen, self._branch, self.step = {}, {}, 0, -1
        self._last, self._directions = None, ()

    def book(self, trace: Trace) -> Trace:
        """Adds the accounts of a call, and returns those of all calls so far."""
        if self.trace is None:
            self.trace = trace
        else:
            self.trace.extend(trace)
        return self.trace


# Open trajectories by owner, per thread and task: another user of the same model does not join in.
_OPEN: ContextVar[dict[int, Trajectory]] = ContextVar("exitkit_trajectories", default={})  # noqa: B039


def trajectory_of(owner: object) -> Trajectory | None:
    """The open trajectory of a wrapped model in this thread or task, or None."""
    return _OPEN.get().get(id(owner))


@contextmanager
def opened(owner: object, steps: int | None, nested: bool = False) -> Iterator[Trajectory]:
    """Opens a trajectory of a wrapped model.

    Arguments:
        owner: The wrapped model.
        steps: How many steps are planned, or None.
        nested: Whether one that is open already waits meanwhile.

    Yields:
        The trajectory.

    Raises:
        ConfigError: If steps are no number of steps.
        TrajectoryError: If one is open already and does not wait.
    """
    given: Any = steps
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if steps is not None and not (whole and int(given) >= 1):
        raise ConfigError(
            f"trajectory: steps must be a whole number of at least 1, or None, got {steps!r}. Pass the "
            "number of sampler steps, or leave it out where nobody knows."
        )
    outer = trajectory_of(owner)
    if outer is not None and not nested:
        raise TrajectoryError(
            "A trajectory of this model is open already. Close it before opening the next: state "
            "of two generations must not mix."
        )
    started = Trajectory(steps)
    _OPEN.set({**_OPEN.get(), id(owner): started})
    try:
        yield started
    finally:  # not by a token: trajectories of other models may have begun since, and go on
        others = {key: other for key, other in _OPEN.get().items() if other is not started}
        _OPEN.set(others if outer is None else {**others, id(owner): outer})


def tell_of_exits(policy: Policy, heads: Heads, notices: set[str], inside: bool) -> None:
    """Warns, each once, of carried exits outside a trajectory and of exits that were never fitted.

    Arguments:
        policy: The policy of the call.
        heads: The heads of the exits.
        notices: Names of the warnings that were given.
        inside: Whether a trajectory is open.
    """
    carried = heads.kind.needs_trajectory
    if isinstance(policy, NeverExit):
        return
    if carried and not inside:
        if "outside" not in notices:
            notices.add("outside")
            warnings.warn(
                f"An exit of kind {heads.kind.name!r} has nothing to carry outside a trajectory, so "
                "every row runs to the end. Use `with model.trajectory():` around the sampling loop, or "
                "ek.generate.",
                stacklevel=5,
            )
    elif "unfitted" not in notices and not heads.is_fitted:
        # Rules decide for themselves: they read an uncertainty of 1 until the heads are fitted.
        if carried or isinstance(policy, Schedule):
            notices.add("unfitted")
            does = "runs every row to the end" if carried else "takes what new heads make of exits"
            warnings.warn(
                f"These exits were never fitted: {policy} {does}. Fit them with ek.fit(model, ...), "
                "or load fitted ones.",
                UnfittedWarning,
                stacklevel=5,
            )
