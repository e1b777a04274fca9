"""The network in a sampling loop: where it computes, how it is called, what it predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exitkit.execution.calls import CallForm
from exitkit.model import ExitModel


def placement(model: Any) -> tuple[torch.device, torch.dtype]:
    """Says where a model computes, and in what.

    Arguments:
        model: A module, or any function, which is taken to compute on the CPU in float32.

    Returns:
        Device and dtype of its first floating-point parameter.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    for parameter in parameters:
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def call_form(model: Any) -> CallForm:
    """Says how a model is called, and which tensor of its output is the prediction.

    Arguments:
        model: A wrapped model, whose plan knows both, or anything that is called with a noisy input
            and a timestep.

    Returns:
        The form.
    """
    model = getattr(model, "stands_for", model)  # what is called like a wrapped model
    if isinstance(model, ExitModel):
        return CallForm.of(model.plan, model.backbone.forward)
    return CallForm()


class Planned(nn.Module):
    """A bare backbone that is called, and read, as the plan of a wrapped one says.

    Arguments:
        backbone: The bare backbone.
        form: How it is called.
    """

    def __init__(self, backbone: nn.Module, form: CallForm) -> None:
        super().__init__()
        self.backbone, self._form = backbone, form

    def forward(self, noisy: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        """The backbone's prediction, with shape (B, ...)."""
        given = self._form.arguments(noisy, timestep, **conditions)
        return self._form.prediction(self.backbone(*given.args, **given.kwargs))


def planned(backbone: nn.Module, model: ExitModel) -> nn.Module:
    """A bare backbone in the form that `generate` calls, by what is known of a wrapped one.

    Arguments:
        backbone: The bare backbone.
        model: A wrapped backbone of the same kind.

    Returns:
        The backbone itself wherever that is possible: anything around it would cost it time.
    """
    form = call_form(model)
    alone = len(model.plan.outputs) == 1
    return backbone if form.leads and alone else Planned(backbone, form)


def name_of(model: Any) -> str:
    """What errors call a network: the class of the backbone."""
    return type(model.backbone if isinstance(model, ExitModel) else model).__name__
