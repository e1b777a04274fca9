"""The checks of landings fail where exits land wrong: on plans that are guesses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exitkit.surgery import plan as planning
from exitkit.surgery.evidence import Evidence
from exitkit.testing import ContractError, check_backbone
from tests.landing_networks import IMAGE, TOKENS, Outside, UNet, WaveNet, example
from tests.surgery.test_read_graph import seeded
from tests.surgery.test_reads import chain


@pytest.fixture
def guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans by form alone: every network is a chain, and outputs are hidden states."""

    def gather(model: nn.Module, seen: Any, stages: Any, prediction: Any) -> Evidence:
        return Evidence([list(calls) for calls in stages], chain(len(stages)), "guessed")

    monkeypatch.setattr(planning, "gather", gather)


@pytest.mark.usefixtures("guessed")
def test_a_landing_that_nobody_reads_is_found() -> None:
    with pytest.raises(ContractError, match="does not move with what the exit lands"):
        check_backbone(seeded(WaveNet), example(TOKENS))


@pytest.mark.usefixtures("guessed")
def test_a_carried_exit_that_loses_something_is_found() -> None:
    with pytest.raises(ContractError, match="where nothing has changed since"):
        check_backbone(seeded(Outside, last=False), example(TOKENS), config="carried")


@pytest.mark.parametrize("preset", ["relative", "paper", "carried"])
def test_every_preset_holds_on_a_unet_at_every_size(preset: str) -> None:
    check_backbone(seeded(UNet, "add"), example(IMAGE), config=preset)


def test_an_exit_that_gives_another_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from exitkit.heads.tail import TailHead

    forward = TailHead.forward

    def broken(self: TailHead, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if hidden.shape[1] != 8:
            raise RuntimeError("shapes cannot be multiplied")
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(TailHead, "forward", broken)
    with pytest.raises(ContractError, match="at another size, exit 1 .* raises RuntimeError"):
        check_backbone(seeded(Outside), example(TOKENS))


def test_a_head_that_is_not_asked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from exitkit.heads.tail import TailHead

    monkeypatch.setattr(TailHead, "forward", lambda self, hidden, *args, **kwargs: hidden)
    with pytest.raises(ContractError, match="does not depend on the parameters of the exit's own"):
        check_backbone(seeded(Outside), example(TOKENS))


def test_an_untrained_exit_that_is_no_identity_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from exitkit.heads.tail import TailHead

    forward = TailHead.forward
    monkeypatch.setattr(TailHead, "forward", lambda self, *a, **k: forward(self, *a, **k) * 1.1)
    with pytest.raises(
        ContractError, match="from the backbone with the hidden state behind layers.0"
    ):
        check_backbone(seeded(WaveNet), example(TOKENS))
