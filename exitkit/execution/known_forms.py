"""Whether carried exits are right in a call unlike the example: tried once for each form of call.

Where rows may land was established on the example. An argument that it did not have, a flag or another size
can open a path on which the tail reads a stage that an exit passes over. So before rows may leave in such a
call, everything runs once, and once more with what was found put where rows land: both give the same, or the
exit is not for calls of this form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution import host
from exitkit.execution.exits import PlacedExit
from exitkit.execution.recording import Analyst, Recording
from exitkit.modes.flags import evaluating, preserved_rng
from exitkit.modes.snapshot import preserved_state
from exitkit.surgery.inputs import Bound
from exitkit.surgery.spec import Plan

_REMEDY = (
    "Wrap with example_inputs like this call, or make such calls with model.policy = "
    "ek.policies.NeverExit()."
)
_MOST = 64  # forms come and go, and few are kept


class KnownForms:
    """Forms of call for which it is known that carried exits land on what is read."""

    def __init__(self) -> None:
        self._known: set[object] = set()

    def note(self, analyst: Analyst, bound: Bound) -> None:
        """Notes the form of the example, for which the plan was made."""
        self._known.add(_form(analyst, bound))

    def check(self, analyst: Analyst, bound: Bound, through: Callable[..., Any]) -> None:
        """Makes sure that carried exits are right in a call.

        Arguments:
            analyst: Runs the backbone.
            bound: The arguments.
            through: The backbone, or its own forward where its hooks have fired already.

        Raises:
            PlanMismatchError: If the tail reads, in this form of call, what an exit passes over.
        """
        form = _form(analyst, bound)
        if form in self._known:
            return
        backbone = analyst.backbone
        with preserved_state(backbone), evaluating(backbone), preserved_rng(), torch.no_grad():
            full = analyst.record(bound, through)
            for point in analyst.layout.points:
                if point.carried is not None and point.landing is not None:
                    _check_sizes(analyst.layout.plan, point, full)
                    made = analyst.passed_over(bound, full, point, through)
                    _check(analyst.layout.plan, point, made, full.prediction)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known.add(form)


def _check_sizes(plan: Plan, point: PlacedExit, full: Recording) -> None:
    h, landing = full.hidden[point.index], full.landing[point.index]
    if point.carried is not None and not point.carried.fits(h, landing):
        raise PlanMismatchError(
            f"{plan.class_name}: this call is of another form than the example (an argument, a flag or a "
            f"size): behind exit {point.boundary.path!r} the hidden state is {tuple(h.shape)} and where its "
            f"rows go on, behind {_landing(plan, point)!r}, {tuple(landing.shape)}, so there is no rest "
            f"between the two to carry. {_REMEDY}"
        )


def _landing(plan: Plan, point: PlacedExit) -> str:
    return plan.stages[(point.landing or 1) - 1].path


def _check(plan: Plan, point: PlacedExit, made: Tensor, full: Tensor) -> None:
    gap = (made - full).double().norm() / full.double().norm().clamp_min(1e-30)
    exact = full.dtype in (torch.float32, torch.float64)
    if host.flag(gap > (1e-3 if exact else 5e-2)):
        raise PlanMismatchError(
            f"{plan.class_name}: this call is of another form than the example (an argument, a flag or a "
            f"size): behind {_landing(plan, point)!r}, where rows of exit {point.boundary.path!r} go on, it "
            f"reads a stage that they have passed over, so they would be wrong. {_REMEDY}"
        )


def _form(analyst: Analyst, bound: Bound) -> tuple[object, ...]:
    """What may decide which way a forward takes: names, flags and shapes; not the timestep, not amounts."""
    reader, plan = analyst.reader, analyst.layout.plan
    _, noisy, _ = reader.read(bound)
    plain: Any
    plain, shape, dtype = reader.form(bound, noisy)
    time = plan.timestep or ""
    kinds = [
        (path, bool(value) if isinstance(value, float) else value)
        for path, value in plain
        if path.split("[")[0].split(".")[0] != time
    ]
    tensors = tuple(path for path, _ in bound.tensors())
    return tuple(kinds), tensors, shape, dtype
