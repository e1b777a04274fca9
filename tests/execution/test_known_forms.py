"""Calls unlike the example that open a path past the landing: refused before a row is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import PlanMismatchError
from exitkit.policies import FixedExit, NeverExit

RAN: list[int] = []  # rows of each forward; what hangs on the network is put back


class Net(nn.Module):
    """Five residual blocks; the tail reads the third, too, where an argument or the size asks for it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.time, self.out = nn.Linear(4, 16), nn.Linear(1, 16), nn.Linear(16, 4)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(5)
            )

    def forward(
        self, x: Tensor, t: Tensor, skip: bool = False, scale: Any = None, name: str = "plain"
    ) -> Tensor:
        RAN.append(len(x))
        h, middle = self.into(x) + self.time(t[:, None].float() / 1000)[:, None], None
        for i, block in enumerate(self.blocks):
            h = h + block(h)
            middle = h if i == 2 else middle
        assert middle is not None
        if skip or x.shape[1] > 6:
            h = h + middle.tanh()
        if scale is not None:
            h = h + scale * middle
        return self.out(h)


def call(tokens: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(3, tokens, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [500] * 3
    )


def wrapped(exits: tuple[str, ...] = ("*",), **more: Any) -> ek.ExitModel:
    model = ek.wrap(Net().eval(), "carried", example_inputs=ek.Inputs(*call(), **more), exits=exits)
    model.heads.mark_fitted(uncertainty=False)
    return model


def last_step(model: ek.ExitModel, args: tuple[Tensor, ...], **more: Any) -> Tensor:
    """The third step on an unchanged input, in which all rows leave at the first exit."""
    out = args[0]
    with torch.no_grad(), model.trajectory() as steps:
        for policy in (NeverExit(), NeverExit(), FixedExit(1)):
            steps.next_step()
            model.policy = policy
            out = model(*args, **more)
    return out


OPENED = [{"skip": True}, {"scale": 0.7}, {"scale": torch.tensor(0.7)}]


@pytest.mark.parametrize("more", [*OPENED, {"tokens": 9}], ids=str)
def test_a_path_that_the_example_did_not_open_is_refused(more: dict[str, Any]) -> None:
    model = wrapped()
    args = call(more.pop("tokens", 6)) if "tokens" in more else call()
    match = r"another form than the example.*'blocks.4'.*exit 'blocks.0'.*NeverExit\(\)"
    for _ in range(2):
        with pytest.raises(PlanMismatchError, match=match):
            last_step(model, args, **more)
    model.policy = NeverExit()  # the controls
    assert torch.equal(model(*args, **more), model.backbone(*args, **more))
    full = model.backbone(*call())
    torch.testing.assert_close(last_step(model, call()), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [{"name": "another"}, {"scale": 0.0}, {"tokens": 4}], ids=str)
def test_other_forms_are_tried_once(more: dict[str, Any]) -> None:
    model = wrapped()
    args = call(more.pop("tokens", 6)) if "tokens" in more else call()
    full = model.backbone(*args, **more)
    counts = []
    for _ in range(3):
        RAN.clear()
        torch.testing.assert_close(last_step(model, args, **more), full, atol=1e-5, rtol=0)
        counts.append(len(RAN))
    assert counts == [8, 3, 3]  # everything once, and for each of four exits


def test_the_form_of_the_example_is_known() -> None:
    model = wrapped(("blocks.2",), skip=True)
    RAN.clear()
    last_step(model, call(), skip=True)
    assert len(RAN) == 3


class Masked(nn.Module):
    """A masked autoencoder's form: with `keep` the encoder has half of the tokens that the decoder has."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.time, self.out = nn.Linear(4, 16), nn.Linear(1, 16), nn.Linear(16, 4)
            self.token = nn.Parameter(torch.randn(16))
            self.encoder, self.decoder = (
                nn.ModuleList(
                    nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(3)
                )
                for _ in range(2)
            )

    def forward(self, x: Tensor, t: Tensor, keep: Tensor | None = None) -> Tensor:
        h = self.into(x) + self.time(t[:, None].float() / 1000)[:, None]
        index = None if keep is None else keep[..., None].expand(-1, -1, 16)
        h = h if index is None else h.gather(1, index)
        for block in self.encoder:
            h = h + block(h)
        if index is not None:
            h = self.token.expand(len(x), x.shape[1], 16).scatter(1, index, h)
        for block in self.decoder:
            h = h + block(h)
        out: Tensor = self.out(h)
        return out


def test_an_exit_and_a_landing_of_different_size_carry_nothing() -> None:
    net, (x, t) = Masked().eval(), call()
    keep = torch.stack([torch.randperm(6)[:3] for _ in range(3)])
    model = ek.wrap(net, "carried", example_inputs=(x, t), exits=("encoder.0",))
    model.heads.mark_fitted(uncertainty=False)
    assert model.heads.landings == [6]
    with torch.no_grad(), model.trajectory() as steps:
        for _ in range(3):  # without exits the call is the backbone's
            steps.next_step()
            model.policy = NeverExit()
            assert torch.equal(model(x, t, keep), net(x, t, keep))
        steps.next_step()
        model.policy = FixedExit(1)
        with pytest.raises(PlanMismatchError, match=r"\(3, 3, 16\).*'decoder.2'.*\(3, 6, 16\)"):
            model(x, t, keep)
    assert last_step(model, (x, t)).shape == x.shape and model.trace.depth[-1].tolist() == [1] * 3
