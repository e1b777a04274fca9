"""Forwards that are replaced on one instance, and how they are taken off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from exitkit.errors import AlreadyWrappedError
from exitkit.modes.compiled import in_python

COPIED = (*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "__signature__")
"""What `copy_signature` puts on an object."""


# accelerate's hooks put a function over the forward and keep what they found beside it.
_PLACES = ("forward", "_old_forward")


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module's class, bound to it, whatever the instance has in its place."""
    forward: Callable[..., Any] = type(module).forward.__get__(module)
    return forward


def is_own(module: nn.Module, forward: object) -> bool:
    """Whether a forward is that of the module's class, bound to it."""
    function = getattr(forward, "__func__", None)
    return function is type(module).forward and getattr(forward, "__self__", None) is module


def copy_signature(ours: Any, original: Callable[..., Any]) -> None:
    """Makes a callable object look like the forward that it replaces.

    Arguments:
        ours: The object.
        original: The forward.
    """
    functools.update_wrapper(ours, original, updated=())
    try:
        ours.__signature__ = inspect.signature(original)
    except (TypeError, ValueError):  # functions of C have none that Python can tell
        return


def found(module: nn.Module, kind: type) -> bool:
    """Whether a replaced forward of this kind is on a module, also under a hook put over it."""
    return any(isinstance(module.__dict__.get(name), kind) for name in _PLACES)


def restore(module: nn.Module, ours: object, replaced: Any) -> str | None:
    """Takes a replaced forward off a module, also from under a hook that was put over it since.

    Arguments:
        module: The module.
        ours: What was put in place of its forward.
        replaced: The instance's forward before, or None.

    Returns:
        Name of the attribute that it was in; None if it is not there.
    """
    for name in _PLACES:
        if module.__dict__.get(name) is not ours:
            continue
        if replaced is not None:
            module.__dict__[name] = replaced
        elif name == "forward":
            del module.__dict__[name]
        else:
            module.__dict__[name] = own_forward(module)
        return name
    return None


class Replacement(Protocol):
    """An object in place of a forward."""

    replaced: Any

    def bind(self, original: Callable[..., Any]) -> None:
        """Takes the place of this forward."""


def put_back(module: nn.Module, ours: Replacement, name: str, left: Any) -> None:
    """Undoes `restore`.

    Arguments:
        module: The module.
        ours: What was taken off.
        name: What `restore` returned.
        left: What was in its place afterwards, None for nothing.
    """
    if module.__dict__.get(name) is left:
        module.__dict__[name] = ours
    elif "_old_forward" in module.__dict__:  # a hook was put over the forward meanwhile
        module.__dict__["_old_forward"] = ours
    else:  # a forward of somebody else: it is the one that is replaced now
        ours.replaced = module.__dict__.get("forward")
        ours.bind(module.forward)
        module.__dict__["forward"] = ours


class Owner(Protocol):
    """Who answers the calls of a backbone in its place."""

    def answers(self) -> bool:
        """Whether a call that comes now goes through the owner, and is not its own."""

    def answer(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answers a call; `original` is the backbone's own forward."""


class ForwardOverride:
    """Sends the calls of a backbone through its wrapped model.

    A pipeline goes on holding and calling the backbone itself. Calls that come from the wrapped model
    pass through to the forward that was there.

    Arguments:
        backbone: The backbone.
        owner: Its wrapped model.
        removed: Called when the override is taken off.
    """

    def __init__(
        self, backbone: nn.Module, owner: Owner, removed: Callable[[], None] | None = None
    ) -> None:
        self.owner, self._removed, self.backbone = owner, removed, backbone
        self.replaced = self.backbone.__dict__.get("forward")  # an instance forward of someone else
        under = self.backbone.__dict__.get("_old_forward")
        if isinstance(self.replaced, ForwardOverride) or isinstance(under, ForwardOverride):
            raise AlreadyWrappedError(
                f"This {type(self.backbone).__name__} leaves early in its pipeline already. Undo it "
                "first with ek.disable_early_exit(pipe)."
            )
        if under is not None and self.replaced is not None:
            # Offloading takes its hook off after each call, and puts it on again: under it we stay.
            self.replaced = None if is_own(self.backbone, under) else under
            self.bind(under)
            self.backbone.__dict__["_old_forward"] = self
            return
        self.bind(self.backbone.forward)
        self.backbone.forward = self

    def bind(self, original: Callable[..., Any]) -> None:
        """Takes the place of this forward."""
        self.original, self._call = original, in_python(self._answer)
        copy_signature(self, original)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what `bind` makes: the backbone's own forward would be copied as the override."""
        left_out = (*COPIED, "original", "_call", "_removed")  # a copy belongs to no pipeline
        return {k: v for k, v in vars(self).items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _removed=None)
        self.bind(self.replaced or own_forward(self.backbone))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the backbone with exits, or as it was where the wrapped model itself calls."""
        return self._call(*args, **kwargs)

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if not self.owner.answers():
            return self.original(*args, **kwargs)
        # Hooks of the backbone have fired on the way here: what is inside them goes on.
        return self.owner.answer(self.original, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> ForwardOverride:
        """An override is bound to its backbone already."""
        return self

    def remove(self) -> None:
        """Gives the backbone its own forward back."""
        if self._removed is not None:
            self._removed()
        # Last: as long as an override is there, its model is found and can be released once more.
        restore(self.backbone, self, self.replaced)
