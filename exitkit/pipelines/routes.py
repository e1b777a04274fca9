"""Where the calls of a denoiser go that a pipeline makes: through its exits, or to who drives the pipeline.

A pipeline goes on holding and calling its denoiser itself. While a sampler drives it, the sampler says
what answers: the exits, a recorder, the bare network, or another network in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from exitkit.execution.gate import CURRENT
from exitkit.execution.patching import ForwardOverride, found
from exitkit.model import ExitModel

Answer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Answers a call from the backbone's own forward, positional and keyword arguments."""

# By the backbone, per thread and task. None: within an answer, where the backbone is itself again.
_ROUTES: ContextVar[dict[int, Answer | None]] = ContextVar("exitkit_routes", default={})  # noqa: B039


@dataclass
class RoutedCalls:
    """Answers calls of a backbone that somebody has sent elsewhere.

    Attributes:
        backbone: The backbone.
    """

    backbone: nn.Module

    def answers(self) -> bool:
        """Whether a call that comes now goes elsewhere."""
        return _ROUTES.get().get(id(self.backbone)) is not None

    def answer(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Hands a call on; what the answer itself calls runs as it was."""
        routes = _ROUTES.get()
        answer = routes[id(self.backbone)]
        assert answer is not None
        token = _ROUTES.set({**routes, id(self.backbone): None})
        try:
            return answer(original, args, kwargs)
        finally:
            _ROUTES.reset(token)


@dataclass
class BackboneCalls:
    """Answers calls of a backbone itself, as a pipeline makes them, with its wrapped model.

    Attributes:
        model: The wrapped model.
        before: Told of each call before it is answered.
    """

    model: ExitModel
    before: Callable[[ExitModel], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out who is told: a copy belongs to no pipeline."""
        return {"model": self.model, "before": None}

    def answers(self) -> bool:
        """Whether a call that comes now is not one that the wrapped model makes."""
        run = CURRENT.get()
        if self.model.released or (run is not None and run.gates is self.model._executor.gates):
            return False
        routes = _ROUTES.get()
        return id(self.model.backbone) not in routes or routes[id(self.model.backbone)] is not None

    def answer(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs the backbone with exits, or hands the call on."""
        routed = RoutedCalls(self.model.backbone)
        if routed.answers():
            return routed.answer(original, args, kwargs)
        if self.before is not None:
            self.before(self.model)
        return self.model._run(original, args, kwargs)


def is_routed(backbone: nn.Module) -> bool:
    """Whether somebody sends the calls of a backbone elsewhere, in this thread or task."""
    return id(backbone) in _ROUTES.get()


def route_of(backbone: nn.Module) -> Answer | None:
    """Who answers the calls of a backbone in this thread or task; None if itself, or its exits."""
    return _ROUTES.get().get(id(backbone))


def take_over(
    model: ExitModel,
    removed: Callable[[], None] | None = None,
    before: Callable[[ExitModel], None] | None = None,
) -> None:
    """Sends calls of a wrapped backbone itself, as a pipeline makes them, through the exits.

    Arguments:
        model: The wrapped model.
        removed: Called when it is undone.
        before: Told of each call, with the model, before it is answered.

    Raises:
        AlreadyWrappedError: If they go through exits already.
    """
    model._override = ForwardOverride(model.backbone, BackboneCalls(model, before), removed)


def wrapped_in(backbone: nn.Module) -> ExitModel | None:
    """The wrapped model that answers calls of a backbone itself; None where there is none.

    Arguments:
        backbone: The backbone, as a pipeline holds it.
    """
    for name in ("forward", "_old_forward"):
        override = backbone.__dict__.get(name)
        if isinstance(override, ForwardOverride) and isinstance(override.owner, BackboneCalls):
            return override.owner.model
    return None


@contextmanager
def routed(answers: Mapping[nn.Module, Answer]) -> Iterator[None]:
    """Sends the calls of some backbones elsewhere for a while, in this thread or task.

    Arguments:
        answers: Who answers, by backbone.
    """
    with ExitStack() as stack:
        for backbone in answers:
            if not found(backbone, ForwardOverride):
                override = ForwardOverride(backbone, RoutedCalls(backbone))
                stack.callback(override.remove)
        given: dict[int, Answer | None] = {id(module): a for module, a in answers.items()}
        token = _ROUTES.set({**_ROUTES.get(), **given})
        stack.callback(_ROUTES.reset, token)
        yield
