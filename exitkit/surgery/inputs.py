"""Arguments: how example inputs are given, bound to parameter names, and told apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

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

TOKEN_NAMES = ("input_ids", "indices", "token_ids", "tokens", "ids", "x", "x_t")

_TIME_ENDS = ("_time", "_timestep", "_timesteps", "_step", "_sigma", "_sigmas", "_noise_level")


def is_time(path: str) -> bool:
    """Whether the name of a parameter, or of an entry of a mapping, says that it is a timestep."""
    name = entry_name(path)
    return name in TIMESTEP_NAMES or name.endswith(_TIME_ENDS)


def entry_name(path: str) -> str:
    """The name that a path ends with: of `batch.x` it is `x`; of an entry of a list the list's."""
    return path.removesuffix("[0]").rpartition(".")[2]


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
        refused: Why it could not, as the end of a sentence.
    """

    values: dict[str, Any]
    signature: inspect.Signature | None
    refused: str = ""

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Tensor leaves of all arguments."""
        given = self.values.items()
        return [leaf for name, value in given for leaf in leaves(value, name, objects=False)]

    def at(self, path: str) -> Any:
        """The argument of a name, or the tensor at a path inside one; None if there is none."""
        if path in self.values:
            return self.values[path]
        return dict(self.tensors()).get(path) if "." in path or "[" in path else None

    def replaced(self, new: Mapping[str, Any]) -> Bound:
        """A copy with leaves replaced by path."""
        return Bound(
            {
                name: substitute(value, new, name, objects=False)
                for name, value in self.values.items()
            },
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
    refused = ""
    if signature is not None:
        try:
            return Bound(dict(signature.bind(*args, **kwargs).arguments), signature)
        except TypeError as error:
            # A wrong call must show the module's own error: leave it as it is.
            refused = f", {error}"
    return Bound({"args": tuple(args), "kwargs": dict(kwargs)}, None, refused)


class Binder:
    """Binds many calls of one forward; those that need no thought without `inspect`, which takes long.

    Arguments:
        signature: Signature of the forward, without `self`, or None.
    """

    def __init__(self, signature: inspect.Signature | None) -> None:
        self.signature = signature
        given = [] if signature is None else [*signature.parameters.values()]
        known = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in given)
        self._names = tuple(p.name for p in given) if known else ()
        self._needed = frozenset(p.name for p in given if p.default is inspect.Parameter.empty)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
        """As `bind`."""
        names, count = self._names, len(args)
        last = count + len(kwargs)
        if last <= len(names) and tuple(kwargs) == names[count:last]:
            values = dict(zip(names, args, strict=False), **kwargs)
            if self._needed <= values.keys():
                return Bound(values, self.signature)
        return bind(self.signature, args, kwargs)


_KNOWN: WeakKeyDictionary[Callable[..., Any], inspect.Signature] = WeakKeyDictionary()
"""Signatures of methods, by their function: a dry run asks for that of every module it meets."""


def signature_of(forward: Callable[..., Any]) -> inspect.Signature | None:
    """Signature of a forward, or None where Python cannot tell (C functions)."""
    function = forward.__func__ if isinstance(forward, MethodType) else None
    if not isinstance(function, FunctionType) or vars(function):
        function = None  # of a decorated one, another signature may be told tomorrow
    known = None if function is None else _KNOWN.get(function)
    if known is not None:
        return known
    try:
        found = inspect.signature(forward)
    except (TypeError, ValueError):
        return None
    if function is not None:
        _KNOWN[function] = found
    return found


def positional(signature: inspect.Signature | None) -> tuple[str, ...] | None:
    """Names of the parameters that positional arguments go to, in order; None if nobody can tell."""
    if signature is None:
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None  # keywords beyond the signature are nested under its own name
    return tuple(p.name for p in parameters if p.kind in kinds)
