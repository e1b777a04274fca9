"""The call that a backbone was wrapped with, described well enough to be made again.

Kept are names, shapes, dtypes, plain values and small tensors; of larger tensors the range and spread,
from which another tensor of the kind is drawn. No text or picture of the example is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from exitkit.errors import CheckpointError
from exitkit.surgery.inputs import Inputs

MOST_VALUES = 64
"""Elements of a tensor that is kept as it is: a timestep, sizes, a short mask."""
MOST_CHOICES = 8
"""Distinct values of a tensor that is drawn from these alone: a mask, a constant."""
_SEARCHED = 1_000_000


def describe(example_inputs: Any, time: tuple[float, float] = (1.0, 0.0)) -> dict[str, Any]:
    """Describes the arguments of a call.

    Arguments:
        example_inputs: As for `wrap`.
        time: Scale and origin of the timestep, which the arguments need not tell.

    Returns:
        Plain values that survive JSON.
    """
    inputs = Inputs.of(example_inputs)
    return {
        "args": [_described(value) for value in inputs.args],
        "kwargs": {name: _described(value) for name, value in inputs.kwargs.items()},
        "time": list(time),
    }


def drawn(description: Mapping[str, Any], device: torch.device, where: str) -> Inputs:
    """Makes arguments of the kind that was described, always the same ones.

    Arguments:
        description: What `describe` returned.
        device: Where tensors are put.
        where: The file that it comes from, for the message.

    Returns:
        The arguments.

    Raises:
        CheckpointError: If the description is damaged, or an argument was an object of a class of its own.
    """
    generator = Generator().manual_seed(0)
    try:
        args = [_drawn(value, device, generator) for value in description["args"]]
        kwargs = {n: _drawn(v, device, generator) for n, v in description["kwargs"].items()}
    except _UnknownObject as error:
        raise CheckpointError(
            f"{where}: the example call had an argument of class {error}, which cannot be made again. "
            "Pass example_inputs= as for ek.wrap."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: the description of the example call is damaged ({type(error).__name__}: {error}). "
            "Pass example_inputs= as for ek.wrap, or save the model again."
        ) from error
    return Inputs(*args, **kwargs)


class _UnknownObject(Exception):  # noqa: N818 - names the class of what cannot be made again
    """An argument that is neither a tensor, a plain value, nor a container of these."""


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"tensor": _tensor(value.detach())}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, torch.dtype):
        return {"dtype": _name(value)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(child) for child in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(child) for key, child in value.items()}}
    return {"object": f"{type(value).__module__}.{type(value).__qualname__}"}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"shape": list(tensor.shape), "dtype": _name(tensor.dtype)}
    flat = tensor.flatten().cpu()
    if flat.is_complex():
        return told
    if flat.numel() <= MOST_VALUES:
        return told | {"values": flat.tolist()}
    if flat.is_floating_point():
        flat = flat.double()
    choices = flat[:_SEARCHED].unique()
    if len(choices) <= MOST_CHOICES and flat.numel() <= _SEARCHED:
        return told | {"choices": choices.tolist()}
    if not flat.is_floating_point():
        return told | {"low": int(flat.min()), "high": int(flat.max())}
    finite = flat[flat.isfinite()]
    return told | {
        "low": float(finite.min()),
        "high": float(finite.max()),
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "whole": bool((finite == finite.round()).all()),
    }


def _drawn(told: Mapping[str, Any], device: torch.device, generator: Generator) -> Any:
    ((kind, value),) = told.items()
    match kind:
        case "tensor":
            return _drawn_tensor(value, generator).to(device)
        case "value":
            return value
        case "dtype":
            return _dtype(value)
        case "list":
            return [_drawn(child, device, generator) for child in value]
        case "tuple":
            return tuple(_drawn(child, device, generator) for child in value)
        case "dict":
            return {key: _drawn(child, device, generator) for key, child in value.items()}
        case "object":
            raise _UnknownObject(value)
    raise ValueError(f"unknown entry {kind!r}")


def _drawn_tensor(told: Mapping[str, Any], generator: Generator) -> Tensor:
    shape, dtype = tuple(told["shape"]), _dtype(told["dtype"])
    made: Tensor
    if "values" in told:
        made = torch.tensor(told["values"], dtype=dtype).reshape(shape)
        return made
    if "choices" in told:
        made = torch.tensor(told["choices"], dtype=dtype)
        return made[torch.randint(len(made), shape, generator=generator)]
    if dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    if not dtype.is_floating_point:
        high = int(told["high"]) + 1
        return torch.randint(int(told["low"]), high, shape, generator=generator).to(dtype)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    made = (made * told["std"] + told["mean"]).clamp(told["low"], told["high"])
    return (made.round() if told["whole"] else made).to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found
