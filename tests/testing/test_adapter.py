"""The contract of an adapter: what it claims, what it declares, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import ExitKitError
from exitkit.testing import ContractError, check_adapter
from tests.surgery.towers import TOWERS


def towers() -> tuple[dict[str, Any], nn.Module, tuple[Tensor, Tensor]]:
    namespace: dict[str, Any] = {"__name__": "towers_package"}
    exec(TOWERS, namespace)
    torch.manual_seed(0)
    model = namespace["Towers"]().eval()
    return namespace, model, (torch.randn(4, 8), torch.rand(4) * 900)


def test_an_adapter_that_holds() -> None:
    namespace, model, example = towers()
    check_adapter(namespace["ADAPTER"], model, example)
    check_adapter(
        replace(namespace["ADAPTER"], matches=lambda m: hasattr(m, "second")), model, example
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matches": "elsewhere.Towers"}, "does not claim Towers"),
        ({"matches": lambda m: True}, "claims nn.Identity too"),
    ],
)
def test_an_adapter_that_does_not(change: dict[str, Any], message: str) -> None:
    namespace, model, example = towers()
    with pytest.raises(ContractError, match=message):
        check_adapter(replace(namespace["ADAPTER"], **change), model, example)
    with pytest.raises(ExitKitError, match=r"timestep='time' is no argument of the example"):
        check_adapter(replace(namespace["ADAPTER"], timestep="time"), model, example)
    with pytest.raises(ExitKitError, match="which match 0 calls"):
        check_adapter(replace(namespace["ADAPTER"], blocks=("third.*",)), model, example)
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_timestep_that_is_not_heard() -> None:
    namespace, _, (x, dirt) = towers()

    class Deaf(namespace["Towers"]):  # type: ignore[misc]
        def forward(self, x: Tensor, dirt: Tensor) -> Tensor:
            return super().forward(x, torch.zeros_like(dirt))

    adapter = replace(namespace["ADAPTER"], matches=lambda m: hasattr(m, "second"))
    with pytest.raises(ContractError, match=r"timestep='dirt', but Deaf does not listen to it"):
        check_adapter(adapter, Deaf().eval(), (x, dirt))
