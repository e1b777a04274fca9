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
        if config.resume == "tail" or (config.resume == "auto" and at.lands):
            return plan.num_stages
        if at.mirror is None:
            raise BoundaryError(
                f"{plan.class_name}: exit {at.path!r} has no mirrored stage to resume at, since no "
                "later stage takes its skips from here or before. Name another exit with "
                "exits=(...), or use OutputConfig(resume='tail')."
            )
        return at.mirror - 1

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

    def default_exits(self, usable: Sequence[Boundary], config: OutputConfig) -> list[Boundary]:
        # Nobody named them: those that cannot be resumed from are not meant.
        if config.resume == "tail":
            return list(usable)
        lands = config.resume == "auto"
        return [b for b in usable if b.mirror is not None or b.lands and lands] or list(usable)

    def blank_state(self, site: Site, like: Tensor) -> CarriedState | None:
        assert site.landing is not None
        h, v = (like.new_zeros(1, *spec.shape) for spec in (site.hidden, site.landing))
        t = like.new_zeros(1)
        return CarriedState.between(t, FullStep(h, v, t))
