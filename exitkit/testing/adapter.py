"""The contract of an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from exitkit.pipelines.verbs import inspect
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.registry import Registry
from exitkit.testing.backbone import check_backbone
from exitkit.testing.contract import require


def check_adapter(
    adapter: Adapter, model: nn.Module, example_inputs: Any, *, atol: float = 2e-5
) -> None:
    """Checks that an adapter claims a model, that what it declares holds, and what follows from it.

    Arguments:
        adapter: The adapter. It need not be registered.
        model: A backbone of its family, in eval mode. It is left as it was.
        example_inputs: What the model is called with, as for `wrap`; random, at least one row.
        atol: As for `check_backbone`.

    Raises:
        ContractError: At the first broken promise.
        ExitKitError: If the backbone cannot be wrapped with it.
    """
    name = type(model).__name__
    alone = Registry.of(adapter)
    require(
        alone.resolve(model) is adapter,
        f"Adapter {adapter.name!r} does not claim {name}: matches={adapter.matches!r}, the class is "
        f"{type(model).__module__}.{type(model).__qualname__}.",
    )
    require(
        alone.resolve(nn.Identity()) is None,
        f"Adapter {adapter.name!r} claims nn.Identity too. Its predicate must tell its own family.",
    )
    plan = inspect(model, example_inputs=example_inputs, adapter=adapter)
    for declared, found, what in (
        (adapter.noisy, plan.noisy, "noisy"),
        (adapter.timestep, plan.timestep, "timestep"),
    ):
        require(
            declared is None or declared == found,
            f"Adapter {adapter.name!r} declares {what}={declared!r}, but {name} does not listen to "
            f"it: the plan has {found!r}.",
        )
    check_backbone(model, example_inputs, adapter=adapter, atol=atol)
