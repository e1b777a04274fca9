"""The kind `carried` of output heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.errors import BoundaryError
from exitkit.heads.carried.head import CarriedHead
from exitkit.heads.carried.state import CarriedState, FullStep
from exitkit.heads.kinds import OutputKind, Site, register_kind
from exitkit.surgery.spec import Boundary, Plan


@register_kind
class Carried(OutputKind):
    """Lands at the end of the network, or resumes at the stage that mirrors the exit's."""

    name = "carried"
    needs_trajectory = True
    fitted_on = "windows"

    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        place = _place(plan, at, config)
        if place is not None:
            return place
        if config.resume == "mirror" and not at.no_resume:
            why = "no later stage takes its skips from here or before"
        elif config.resume == "tail" and not at.no_resume:
            why = "the tail reads what passed-over stages gave beside the hidden state at the end"
        else:
            why = at.no_resume
        raise BoundaryError(
            f"{plan.class_name}: exit {at.path!r} can resume nowhere: {why}. Name another exit with "
            "exits=(...), another OutputConfig(resume=...), or take heads that need no earlier step: "
            "the preset 'relative'."
        )

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        assert site.landing is not None
        return CarriedHead(
            site.hidden,
            site.landing,
            site.embedding_dim,
            width=config.width,
            order=config.order,
            relative=site.at_end and site.landing == site.hidden,
            knots=config.knots,
        )

    def default_exits(
        self, plan: Plan, usable: Sequence[Boundary], config: OutputConfig
    ) -> list[Boundary]:
        # Nobody named them: those that cannot be resumed from are not meant.
        able = [b for b in usable if _place(plan, b, config) is not None]
        return able or list(usable)

    def blank_state(self, site: Site, like: Tensor) -> CarriedState | None:
        assert site.landing is not None
        h, v = (like.new_zeros(1, *spec.shape) for spec in (site.hidden, site.landing))
        t = like.new_zeros(1)
        return CarriedState.between(t, FullStep(h, v, t))


def _place(plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
    """Where rows of a boundary go on under a config; None if nowhere."""
    if config.resume == "tail":
        return plan.num_stages if at.completes else None
    if config.resume == "mirror":
        return None if at.mirror is None else at.mirror - 1
    return at.resume
