"""The kind `completion` of output heads: none at any boundary, one for the whole backbone."""

from __future__ import annotations

from torch import nn

from exitkit.config import OutputConfig
from exitkit.errors import BoundaryError
from exitkit.heads.completion.head import CompletionHead
from exitkit.heads.kinds import OutputKind, Site, register_kind
from exitkit.surgery.spec import Boundary, Plan


@register_kind
class Completion(OutputKind):
    """Leaves before the first block, and passes over the tail as well."""

    name = "completion"
    needs_trajectory = True
    fitted_on = "states"

    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        return None

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        raise BoundaryError("kind 'completion' has no heads at boundaries: leave exits out.")

    def whole(self, plan: Plan, config: OutputConfig) -> CompletionHead:
        prediction, noisy = plan.prediction_leaf.row, plan.noisy_leaf.row
        if plan.timestep is None:
            raise BoundaryError(
                f"{plan.class_name} is called without a timestep, and completion goes along time. Use the "
                "preset 'relative', or name the timestep with an Adapter."
            )
        if prediction[1:] != noisy[1:]:
            raise BoundaryError(
                f"{plan.class_name} predicts {prediction} from a noisy input of {noisy}: completion needs "
                "a prediction of the form of its input, channels aside. Use the preset 'relative'."
            )
        return CompletionHead(config.quantity, config.along, max(config.knots, 2))
