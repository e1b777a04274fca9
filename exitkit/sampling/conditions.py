"""How a backbone is called, and what it returns: conditioning in, one prediction tensor out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, ShapeError
from exitkit.execution.calls import leading
from exitkit.model import ExitModel

Inputs = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]]
"""Conditioning: tensors of n rows by name, or what makes them from row numbers, with shape (B)."""

Convention = Callable[[Tensor, Tensor], tuple[tuple[Any, ...], dict[str, Any]]]
"""Turns noisy input and timestep into arguments by position and by name."""


def prediction_of(output: Any) -> Tensor:
    """Takes the prediction out of whatever a backbone returns.

    Arguments:
        output: A tensor, a tuple or list with the prediction first, a mapping or object with
            `sample`, or a dataclass with the prediction as its first tensor.

    Returns:
        The prediction.

    Raises:
        ShapeError: If there is no tensor to be found.
    """
    if isinstance(output, Tensor):
        return output
    entries: list[Any] = [getattr(output, "sample", None)]
    if isinstance(output, Mapping):
        entries += [output.get("sample"), *output.values()]
    elif isinstance(output, list | tuple):
        entries += output
    elif is_dataclass(output):
        entries += [getattr(output, field.name) for field in fields(output)]
    for entry in entries:
        if isinstance(entry, Tensor):
            return entry
    raise ShapeError(
        f"The model returned {type(output).__name__}, in which no prediction can be found. "
        "Expected a tensor, a tuple with one first, or an object with `.sample`."
    )


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


def convention(model: Any) -> Convention:
    """Says how the noisy input and the timestep are passed.

    Arguments:
        model: A wrapped model, whose plan knows their names, or anything else.

    Returns:
        A function to the arguments: by name where a wrapped backbone does not take them first.
    """
    if not isinstance(model, ExitModel):
        return lambda x, t: ((x, t), {})
    return leading(model.plan, model.backbone.forward)


class Bare(nn.Module):
    """A bare backbone that does not take noisy input and timestep first, in this order."""

    def __init__(self, backbone: nn.Module, pass_on: Convention) -> None:
        super().__init__()
        self.backbone, self._pass_on = backbone, pass_on

    def forward(self, noisy: Tensor, timestep: Tensor, **conditions: Any) -> Any:
        """Calls the backbone as it wants to be called."""
        args, named = self._pass_on(noisy, timestep)
        return self.backbone(*args, **named, **conditions)


def callable_bare(backbone: nn.Module, model: ExitModel) -> nn.Module:
    """A bare backbone in the form that `generate` calls, by what is known of a wrapped one.

    Arguments:
        backbone: The bare backbone.
        model: A wrapped backbone of the same kind.

    Returns:
        The backbone itself wherever that is possible: anything around it would cost it time.
    """
    pass_on = convention(model)
    args, named = pass_on(torch.zeros(1), torch.zeros(1))
    return Bare(backbone, pass_on) if named or len(args) != 2 else backbone
