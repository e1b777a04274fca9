"""Copies of a network that share its parameters, with other modules in the place of some of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.execution.gate import Gate
from exitkit.execution.patching import ForwardOverride
from exitkit.surgery.inputs import signature_of
from exitkit.surgery.spec import Call, Leaf
from exitkit.tree import leaves, substitute

Change = Callable[[nn.Module], None]
"""Turns a copy of a block into what stands in its place."""


def shared_copy(module: nn.Module, changes: dict[str, Change], path: str = "") -> nn.Module:
    """A copy of a module in which some submodules are changed; everything else is shared.

    Arguments:
        module: The module.
        changes: Changes to copies, by dotted path.
        path: Path of the module itself.

    Returns:
        The copy, with the same parameters.

    Raises:
        ConfigError: If a forward of somebody else is on it.
    """
    inside = [p for p in changes if not path or p == path or p.startswith(f"{path}.")]
    if not inside:
        return module
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = {
        name: None if child is None else shared_copy(child, changes, f"{path}.{name}".lstrip("."))
        for name, child in module._modules.items()
    }
    changes.get(path, ungated)(twin)
    return twin


def ungated(module: nn.Module) -> None:
    """Takes what exitkit has put over the forward of a copy off it.

    Arguments:
        module: The copy.

    Raises:
        ConfigError: If a forward of somebody else is on it, which would run the original.
    """
    forward = module.__dict__.get("forward")
    if isinstance(forward, Gate):
        forward = forward.replaced
    elif isinstance(forward, ForwardOverride):
        forward = forward.replaced
    if forward is not None:
        raise ConfigError(
            f"at: something has put a forward of its own over {type(module).__name__} (an offloading hook, "
            "say), which would run the original. Take it off, then call at() again."
        )
    module.__dict__.pop("forward", None)


def skipped(call: Call, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a block that is not run hands on: what came in, and zeros where nothing did.

    Arguments:
        call: The call.
        names: Parameters of the block.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The output, in the block's own form.
    """
    passes, inputs = dict(call.passes), {leaf.path: leaf for leaf in call.inputs}
    filled = {}
    for leaf in call.outputs:
        source = passes.get(leaf.path)
        if source is not None:
            filled[leaf.path] = given(source, names, args, kwargs)
            continue
        like = call.hidden_in or next(iter(inputs))
        tensor = given(like, names, args, kwargs)
        if call.base is not None and leaf.path == call.hidden_out:
            filled[leaf.path] = torch.zeros_like(tensor)
        else:
            filled[leaf.path] = tensor.new_zeros(_scaled(tensor, inputs[like], leaf))
    return rebuilt(call.skeleton, filled)


def rebuilt(value: Any, new: Mapping[str, Tensor], path: str = "") -> Any:
    """As `exitkit.tree.substitute`, in terms that compilers follow where it is lists and tuples.

    Arguments:
        value: The value to rebuild.
        new: Replacement of each path.
        path: Path of `value` itself.

    Returns:
        A value of the same type.
    """
    if path in new:
        return new[path]
    if type(value) in (list, tuple):
        parts = [rebuilt(child, new, f"{path}[{i}]") for i, child in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or isinstance(value, Tensor):
        return value
    return substitute(value, new, path)


def _scaled(tensor: Tensor, was: Leaf, wanted: Leaf) -> list[Any]:
    """The shape of an output that is to the example's as the input is to the example's."""
    if len(was.shape) != len(wanted.shape):
        rows = (
            tensor.shape[was.axis or 0] * wanted.shape[wanted.axis or 0] // was.shape[was.axis or 0]
        )
        return [rows if i == wanted.axis else n for i, n in enumerate(wanted.shape)]
    return [
        n if a == b else n * b // a
        for n, a, b in zip(tensor.shape, was.shape, wanted.shape, strict=True)
    ]


def given(path: str, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An argument of a call.

    Arguments:
        path: Its address.
        names: Parameters of what is called.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The argument.
    """
    if path in kwargs:
        return kwargs[path]
    if path in names:
        return args[names.index(path)]
    name = path.split("[")[0].split(".")[0]
    return dict(leaves(given(name, names, args, kwargs), name))[path]


def names_of(forward: Callable[..., Any]) -> list[str]:
    """Parameters of a forward, in order."""
    signature = signature_of(forward)
    return [] if signature is None else list(signature.parameters)
