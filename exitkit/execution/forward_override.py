"""The forward of a whole backbone, replaced on the instance, so that its owner runs it with exits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from exitkit.errors import AlreadyWrappedError
from exitkit.execution.gate import CURRENT
from exitkit.execution.patching import COPIED, copy_signature, own_forward, restore

if TYPE_CHECKING:
    from exitkit.model import ExitModel


class ForwardOverride:
    """Sends the calls of a backbone through its wrapped model.

    A pipeline goes on holding and calling the backbone itself. Calls that come from the wrapped model
    pass through to the forward that was there.

    Arguments:
        model: The wrapped model of the backbone.
        removed: Called when the front is taken off.
    """

    def __init__(self, model: ExitModel, removed: Callable[[], None] | None = None) -> None:
        self.model, self._removed = model, removed
        self.backbone: nn.Module = model.backbone
        self.replaced = self.backbone.__dict__.get("forward")  # an instance forward of someone else
        if isinstance(self.replaced, ForwardOverride):
            raise AlreadyWrappedError(
                f"This {type(self.backbone).__name__} leaves early in its pipeline already. Undo it "
                "first with ek.disable_early_exit(pipe)."
            )
        self._bind(self.backbone.forward)
        self.backbone.forward = self

    def _bind(self, original: Callable[..., Any]) -> None:
        self.original = original
        copy_signature(self, original)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what `_bind` makes: the backbone's own forward would be copied as the front."""
        left_out = (*COPIED, "original", "_removed")  # a copy belongs to no pipeline
        return {k: v for k, v in vars(self).items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _removed=None)
        self._bind(self.replaced or own_forward(self.backbone))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the backbone with exits, or as it was where the wrapped model itself calls."""
        run = CURRENT.get()
        if self.model.released:
            return self.original(*args, **kwargs)
        if run is not None and run.gates is self.model.gates:
            return self.original(*args, **kwargs)
        # Hooks of the backbone have fired on the way here: what is inside them goes on.
        return self.model.run(self.original, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> ForwardOverride:
        """A front is bound to its backbone already."""
        return self

    def remove(self) -> None:
        """Gives the backbone its own forward back."""
        if self._removed is not None:
            self._removed()
        # Last: as long as a front is there, its model is found and can be released once more.
        restore(self.backbone, self, self.replaced)
