"""How a backbone is called, and what it returns: conditioning in, one prediction tensor out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.execution.calls import CallForm
from exitkit.model import ExitModel

Inputs = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]]
"""Conditioning: tensors of n rows by name, or what makes them from row numbers, with shape (B)."""


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


def select_inputs(
    inputs: Inputs | None, rows: Tensor, count: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Takes the rows of a batch out of the conditioning.

    Arguments:
        inputs: The conditioning.
        rows: Row numbers of the batch, with shape (B).
        count: Number of samples in all, n.
        device: Where the tensors are wanted.
        dtype: What floating-point tensors become.

    Returns:
        Arguments by name for this batch.

    Raises:
        ConfigError: If it is no mapping and makes none.
        ShapeError: If a tensor has another number of rows.
    """
    if inputs is None:
        return {}
    made = callable(inputs)
    given: Any = inputs(rows) if callable(inputs) else inputs
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"inputs must be a dict of tensors by argument name, or make one; got "
            f"{type(given).__name__}."
        )

    def pick(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {key: pick(v, f"{where}[{key!r}]") for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([pick(v, f"{where}[{i}]") for i, v in enumerate(value)])
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        expected = len(rows) if made else count
        if len(value) != expected:
            raise ShapeError(
                f"{where} has {len(value)} rows, but there are {expected} samples"
                f"{' in this batch' if made else ''}. Give one row for each seed."
            )
        chosen = value if made else value[rows.to(value.device)]
        return chosen.to(device, dtype if chosen.is_floating_point() else chosen.dtype)

    return {key: pick(value, f"inputs[{key!r}]") for key, value in given.items()}


def call_form(model: Any) -> CallForm:
    """Says how a model is called, and which tensor of its output is the prediction.

    Arguments:
        model: A wrapped model, whose plan knows both, or anything that is called with a noisy input
            and a timestep.

    Returns:
        The form.
    """
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
