"""Example inputs: how they are given, bound to parameter names, and cut into other batch sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ShapeError, TracingError
from exitkit.surgery.trees import leaves, substitute

TIMESTEP_NAMES = (
    "timestep",
    "timesteps",
    "t",
    "time",
    "sigma",
    "sigmas",
    "noise_labels",
    "noise_level",
    "c_noise",
)


class Inputs:
    """Positional and keyword arguments of one forward.

    Arguments:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """Reads the forms a user may give: `Inputs`, a tuple, a dict, or one tensor."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            return cls(**example)
        if isinstance(example, Tensor):
            return cls(example)
        if isinstance(example, tuple | list):
            return cls(*example)
        raise TracingError(
            f"example_inputs: expected a tuple (positional), a dict (keyword), a tensor or ek.Inputs, "
            f"got {type(example).__name__}. For example: example_inputs=(x, t)."
        )


@dataclass
class Bound:
    """Arguments by parameter name, in the order of the signature.

    Attributes:
        values: Name of each parameter that was given, and its value.
        signature: The signature, or None where it could not bind: then names are `args` and `kwargs`.
    """

    values: dict[str, Any]
    signature: inspect.Signature | None

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Tensor leaves of all arguments."""
        return [leaf for name, value in self.values.items() for leaf in leaves(value, name)]

    def replaced(self, new: Mapping[str, Tensor]) -> Bound:
        """A copy with leaves replaced by path."""
        return Bound(
            {name: substitute(value, new, name) for name, value in self.values.items()},
            self.signature,
        )

    def split(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Back to positional and keyword arguments."""
        if self.signature is None:
            return tuple(self.values["args"]), dict(self.values["kwargs"])
        bound = inspect.BoundArguments(self.signature, self.values)
        return bound.args, bound.kwargs


def bind(
    signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Bound:
    """Binds arguments by parameter name, so that positional and keyword calls look alike.

    Arguments:
        signature: Signature of the forward, without `self`.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The bound arguments.
    """
    if signature is not None:
        try:
            return Bound(dict(signature.bind(*args, **kwargs).arguments), signature)
        except TypeError:
            # A wrong call must show the module's own error: leave it as it is.
            pass
    return Bound({"args": tuple(args), "kwargs": dict(kwargs)}, None)


def signature_of(forward: Callable[..., Any]) -> inspect.Signature | None:
    """Signature of a forward, or None where Python cannot tell (C functions)."""
    try:
        return inspect.signature(forward)
    except (TypeError, ValueError):
        return None


@dataclass
class ExampleBatch:
    """Example inputs that can be cut or grown to any number of rows.

    Attributes:
        bound: The example, by parameter name.
        noisy: Path of the noisy input.
        axis: Its batch axis.
        batch: Its batch size.
        axes: Batch axis of every argument that has one.
    """

    bound: Bound
    noisy: str
    axis: int
    batch: int
    axes: dict[str, int] = field(default_factory=dict)

    def rows(self, count: int) -> Bound:
        """The example with `count` rows, repeating rows where it has fewer."""
        index = torch.arange(count) % self.batch
        return self.bound.replaced(
            {
                path: tensor.index_select(self.axes[path], index.to(tensor.device))
                for path, tensor in self.bound.tensors()
                if path in self.axes
            }
        )


def find_noisy(bound: Bound, module: nn.Module, given: str | None = None) -> str:
    """Path of the noisy input: the first floating-point tensor that looks like data.

    Arguments:
        bound: The example inputs.
        module: The backbone, for the message.
        given: Path that an adapter or the user declares.

    Returns:
        The path.

    Raises:
        TracingError: If there is no floating-point tensor, or the declared path is not there.
    """
    tensors = bound.tensors()
    if given is not None:
        if given not in dict(tensors):
            raise TracingError(
                f"{type(module).__name__}: noisy={given!r} is not among the example inputs "
                f"({', '.join(p for p, _ in tensors)}). Name one of these."
            )
        return given
    floating = [(path, t) for path, t in tensors if t.is_floating_point()]
    for dims in (3, 2, 1):
        for path, tensor in floating:
            if tensor.ndim >= dims and path not in TIMESTEP_NAMES:
                return path
    raise TracingError(
        f"{type(module).__name__}: example_inputs hold no floating-point tensor "
        f"(found {', '.join(p for p, _ in tensors) or 'no tensor'}). "
        "Pass what the model is called with, for example example_inputs=(x, t)."
    )


def example_batch(bound: Bound, noisy: str, axis: int, module: nn.Module) -> ExampleBatch:
    """Reads the batch size along an axis of the noisy input and finds it in the other arguments.

    Arguments:
        bound: The example inputs.
        noisy: Path of the noisy input.
        axis: Axis of the noisy input that counts rows.
        module: The backbone, for the message.

    Returns:
        The example as a batch.

    Raises:
        ShapeError: If the batch is empty.
    """
    tensors = dict(bound.tensors())
    batch = tensors[noisy].shape[axis]
    if batch == 0:
        raise ShapeError(
            f"{type(module).__name__}: the example input {noisy!r} has shape "
            f"{tuple(tensors[noisy].shape)}, an empty batch. Pass at least one row."
        )
    axes: dict[str, int] = {}
    for path, tensor in tensors.items():
        # The noisy input's own axis first: in sequence-first layouts the others follow it.
        for candidate in dict.fromkeys((axis, 0)):
            if tensor.ndim > candidate and tensor.shape[candidate] == batch:
                axes[path] = candidate
                break
    return ExampleBatch(bound, noisy, axis, batch, axes)
