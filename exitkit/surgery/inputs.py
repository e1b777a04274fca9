"""Arguments: how example inputs are given, bound to parameter names, and told apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from exitkit.errors import TracingError
from exitkit.tree import leaves, substitute

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
    "timestep_ratio",
)


NOISY_NAMES = (
    "hidden_states",
    "sample",
    "x",
    "x_t",
    "noisy",
    "latents",
    "latent",
    "pixel_values",
    "img",
    "image",
    "images",
    "input",
    "decoder_input_tokens",
)


def is_time(name: str) -> bool:
    """Whether a parameter's name says that it carries a timestep."""
    return name in TIMESTEP_NAMES or name.endswith(("_time", "_timestep", "_timesteps"))


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

    def lists(self) -> dict[str, int]:
        """Length of every argument that is a list or a plain tuple."""
        kinds = self.signature.parameters if self.signature is not None else {}
        return {
            name: len(value)
            for name, value in self.values.items()
            if name in kinds
            and kinds[name].kind is not inspect.Parameter.VAR_POSITIONAL
            and (isinstance(value, list) or type(value) is tuple)
        }

    def with_entries(self, names: Iterable[str], index: Sequence[int]) -> Bound:
        """A copy in which list arguments hold these of their entries, in this order."""
        chosen = {
            name: type(value)(value[i] for i in index)
            for name in names
            if (value := self.values.get(name)) is not None
        }
        return Bound({**self.values, **chosen}, self.signature)

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
    floating = {path: t for path, t in tensors if t.is_floating_point()}
    by_list = {path.removesuffix("[0]"): path for path in floating}
    for name in NOISY_NAMES:
        if name in by_list and floating[by_list[name]].ndim > 1:
            return by_list[name]
    for dims in (3, 2, 1):
        for path, tensor in floating.items():
            if tensor.ndim >= dims and not is_time(path):
                return path
    raise TracingError(
        f"{type(module).__name__}: example_inputs hold no floating-point tensor "
        f"(found {', '.join(p for p, _ in tensors) or 'no tensor'}). "
        "Pass what the model is called with, for example example_inputs=(x, t)."
    )
