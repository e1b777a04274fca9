"""A pytest plugin for diffusers' own model tests: every network that they make is wrapped at once.

`benchmarks.mixins` runs diffusers' tests with it, once bare and once wrapped. The network stays what it
is, as a pipeline holds it: its calls go through the exits, under a rule that looks at every exit and
never fires. Nothing of this needs the project's tests, whose package has the name of diffusers' own.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import exitkit as ek
from exitkit.model import ExitModel
from exitkit.pipelines.routes import take_over
from exitkit.policies import UncertaintyThreshold

CLASSES = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
)
DEEPER = {
    "DiTTransformer2DModel": {"num_layers": 3},
    "PixArtTransformer2DModel": {"num_layers": 3},
    "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
}
"""Networks of one block have no exit before the last: bare and wrapped they are tested with more."""
NEVER_FIRES = UncertaintyThreshold(1e-9)


@dataclass
class Outcome:
    """One test.

    Attributes:
        result: "passed", "failed" or "skipped".
        message: Last line of the error, or the reason of the skip.
        wrapped: Networks that were given exits in it.
        ran: Those of them that were called and ran to the end.
        early: Those that left early, which must not be.
        bare: Why networks stayed bare.
    """

    result: str = "passed"
    message: str = ""
    wrapped: int = 0
    ran: int = 0
    early: int = 0
    bare: tuple[str, ...] = ()


class Wrapping:
    """Wraps the networks of a test as they are made or loaded.

    Arguments:
        file: Where the outcomes go, as JSON.
        wrap: Whether to wrap at all.
    """

    def __init__(self, file: Path, wrap: bool) -> None:
        self.file, self.wrap = file, wrap
        self.outcomes: dict[str, Outcome] = {}
        self._inputs: Callable[[], Any] | None = None
        self._models: list[ExitModel] = []
        self._bare: list[str] = []
        self._loading = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Gives networks of one block more of them."""
        for item in items:
            for base in getattr(item, "cls", object).__mro__:
                made = vars(base).get("get_init_dict")
                if made is not None and not hasattr(made, "deeper"):
                    base.get_init_dict = _deeper(made)

    def pytest_sessionstart(self) -> None:
        """Changes how networks are made and loaded."""
        for name in CLASSES if self.wrap else ():
            self._watch(getattr(diffusers, name))

    def _watch(self, kind: type[nn.Module]) -> None:
        made, loaded = kind.__init__, kind.from_pretrained.__func__  # type: ignore[attr-defined]

        @functools.wraps(made)
        def init(network: nn.Module, *args: Any, **kwargs: Any) -> None:
            made(network, *args, **kwargs)
            if not self._loading:
                self.give_exits(network)

        @functools.wraps(loaded)
        def load(cls: Any, *args: Any, **kwargs: Any) -> Any:
            self._loading += 1
            try:
                found = loaded(cls, *args, **kwargs)
            finally:
                self._loading -= 1
            self.give_exits(found[0] if isinstance(found, tuple) else found)
            return found

        kind.__init__ = init  # type: ignore[method-assign,assignment]
        kind.from_pretrained = classmethod(load)  # type: ignore[attr-defined]

    def give_exits(self, network: nn.Module) -> None:
        """Wraps a network with the inputs of its test, where it can be run on them."""
        if any(p.is_meta for p in network.parameters()):
            return self._bare.append("on the device meta")
        if self._inputs is None:
            return self._bare.append("a test without inputs of its own")
        mode = network.training
        with torch.random.fork_rng(devices=[]):
            try:
                model = ek.wrap(network, "relative", example_inputs=_as(network, self._inputs()))
            except Exception as error:  # the test alters the network so that its inputs do not fit
                return self._bare.append(f"{type(error).__name__}: {error}".splitlines()[0])
        assert network.training is mode
        model.heads.mark_fitted()
        model.policy = NEVER_FIRES
        take_over(model)
        self._models.append(model)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Finds the inputs of the test."""
        kind = getattr(item, "cls", None)
        has = kind is not None and hasattr(kind, "get_dummy_inputs")
        self._inputs = kind().get_dummy_inputs if has else None
        self.outcomes[item.nodeid] = Outcome()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps what came out."""
        outcome = self.outcomes[report.nodeid]
        if not report.passed:
            outcome.result = report.outcome
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else _last(report)
            outcome.message = str(text)[:300]

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Counts what was wrapped, and lets go of it."""
        outcome = self.outcomes[item.nodeid]
        traces = [m._trace for m in self._models if m._trace is not None]
        outcome.wrapped, outcome.ran = len(self._models), len(traces)
        outcome.early = sum(any(bool((c.depth <= t.exits).any()) for c in t.calls) for t in traces)
        outcome.bare = tuple(dict.fromkeys(self._bare))
        self._models.clear()
        self._bare.clear()

    def pytest_sessionfinish(self) -> None:
        """Writes the outcomes."""
        told = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        self.file.write_text(json.dumps(told, indent=1))


def _as(network: nn.Module, inputs: Any) -> Any:
    """Inputs in the dtype of a network's first weight."""
    dtype = next(network.parameters()).dtype

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, cast, inputs)


def _deeper(made: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(made)
    def get_init_dict(test: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**made(test, *args, **kwargs), **DEEPER.get(test.model_class.__name__, {})}

    get_init_dict.deeper = True  # type: ignore[attr-defined]
    return get_init_dict


def _last(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).strip().splitlines()[0]


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin as the driver asks for."""
    file = Path(os.environ["EXITKIT_OUTCOMES"])
    config.pluginmanager.register(Wrapping(file, os.environ["EXITKIT_WRAP"] == "1"))
