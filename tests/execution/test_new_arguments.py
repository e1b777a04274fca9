"""Calls unlike the example: which arguments hold rows is tried out, and told where nothing fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import PlanMismatchError, UnsupportedBackboneError
from exitkit.policies import FixedExit, NeverExit, ScriptedExit
from tests.backbones import case
from tests.copies import copies

SCRIPTS = [(1, 1, 1, 1, 4), (4, 2, 2, 1, 1), (1, 2, 3, 4, 4), (2, 2, 4, 4, 2)]
atol = 2e-5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(
        self, x: Tensor, c: Tensor, pos: Tensor | None = None, lengths: list[int] | None = None
    ) -> Tensor:
        h = self.norm(x) + (c[:, None] if lengths is None else self.attend(x, c, lengths))
        if pos is not None:
            h = h + pos
        return x + self.down(torch.tanh(self.up(h)))

    def attend(self, x: Tensor, packed: Tensor, lengths: list[int]) -> Tensor:
        """Each row looks at its own part of one packed sequence, as text in PixArt's own code."""
        parts = packed[0].split(lengths)
        return torch.stack([part.mean(0) for part in parts])[:, None].expand_as(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.time, self.out = nn.Linear(4, 8), nn.Linear(1, 8), nn.Linear(8, 4)
            self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        pos: Tensor | None = None,
        text: Tensor | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        h = self.into(x)
        c = self.time(t.reshape(-1, 1).float() / 1000)
        if text is not None:
            c = text
        for block in self.blocks:
            h = block(h, c, pos, lengths)
        return self.out(h)


def noise(rows: int = 5, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, length, 4, generator=generator),
        torch.randint(1, 999, (rows,), generator=generator),
    )


def wrapped(*example: Any) -> ek.ExitModel:
    model = ek.wrap(Net().eval(), "relative", example_inputs=example)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for p in model.heads.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@torch.no_grad()
def check(model: ek.ExitModel, args: tuple[Any, ...], alone: list[tuple[Any, ...]]) -> None:
    """Rows among others equal rows alone."""
    for script in SCRIPTS:
        model.policy = ScriptedExit(script)
        together = model(*args)
        for row, depth in enumerate(script):
            model.policy = ScriptedExit((depth,))
            gap = (together[row] - model(*alone[row])[0]).abs().max()
            assert gap <= atol, f"row {row} at depth {depth} among {script}: {gap:.1e}"


def test_a_new_table_as_long_as_the_batch_is_no_row() -> None:
    (x, t), pos = noise(5, 5), torch.randn(5, 8)
    model = wrapped(x, t)
    check(model, (x, t, pos), [(x[i : i + 1], t[i : i + 1], pos) for i in range(5)])
    assert set(model._executor.gates.gates["blocks.3"].roles.values()) == {False}


def test_a_new_argument_with_rows_has_rows() -> None:
    (x, t), pos = noise(5, 5), torch.randn(5, 1, 8)
    model = wrapped(x, t)
    check(model, (x, t, pos), [(x[i : i + 1], t[i : i + 1], pos[i : i + 1]) for i in range(5)])
    assert set(model._executor.gates.gates["blocks.3"].roles.values()) == {True}


def test_a_table_of_the_example_that_becomes_rows_or_as_long_as_the_batch() -> None:
    x, t = noise(5, 4)
    table = torch.randn(4, 8)
    model = wrapped(x, t, table)
    (x, t), table = noise(5, 5), torch.randn(5, 8)
    check(model, (x, t, table), [(x[i : i + 1], t[i : i + 1], table) for i in range(5)])
    rows = torch.randn(5, 1, 8)
    check(model, (x, t, rows), [(x[i : i + 1], t[i : i + 1], rows[i : i + 1]) for i in range(5)])


@pytest.mark.parametrize("scalar_first", [True, False])
def test_a_timestep_for_all_and_one_a_row(scalar_first: bool) -> None:
    x, t = noise()
    one = torch.tensor(500)
    model = wrapped(x, one if scalar_first else t)
    check(model, (x, t), [(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    check(model, (x, one), [(x[i : i + 1], one) for i in range(5)])
    check(model, (x, t), [(x[i : i + 1], t[i : i + 1]) for i in range(5)])


def test_packed_text_that_the_example_did_not_have_is_an_error() -> None:
    x, t = noise()
    model = wrapped(x, t)
    lengths = [1, 2, 1, 3, 2]
    packed = torch.randn(1, sum(lengths), 8)
    model.policy = ScriptedExit((1, 4, 4, 1, 4))
    with torch.no_grad():
        with pytest.raises(PlanMismatchError, match=r"Block 'blocks.1'.*unlike the example"):
            model(x, t, None, packed, lengths)
        model.policy = ScriptedExit((1,) * 5)
        whole = model(x, t, None, packed, lengths)
        model.policy = FixedExit(1)
        assert torch.equal(whole, model(x, t, None, packed, lengths)), "all at once need no rows"


def test_rows_that_nothing_tells_apart_are_tried_again() -> None:
    x, t = noise(5, 5)
    model = wrapped(x, t)
    model.policy = ScriptedExit(SCRIPTS[0])
    with torch.no_grad():
        model(x, t, torch.zeros(5, 8))
    assert not model._executor.gates.gates["blocks.3"].roles
    pos = torch.randn(5, 8)
    check(model, (x, t, pos), [(x[i : i + 1], t[i : i + 1], pos) for i in range(5)])


def test_a_real_unet_takes_scalar_timesteps_and_others() -> None:
    args, kwargs = case("unet_conditional").inputs(4)
    model = ek.wrap(
        case("unet_conditional").make(), "relative", example_inputs=ek.Inputs(*args, **kwargs)
    )
    bound = model._executor.bind(args, kwargs)
    k = len(model.exits) + 1
    outputs = []
    model.policy = ScriptedExit((1, k, 2, k))
    with torch.no_grad():
        for t in (torch.full((4,), 500), torch.tensor(500), torch.tensor([500]), 500):
            values = {**bound.values, model.plan.timestep: t}
            some_args, some_kwargs = type(bound)(values, bound.signature).split()
            outputs.append(model(*some_args, **some_kwargs).sample)
    for output in outputs[1:]:
        assert torch.allclose(output, outputs[0], atol=atol)


class Packed(Net):
    """Takes what is no padding out of its text, one row behind the other, as PixArt's own code."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
        return super().forward(x, t, None, text[mask][None], mask.sum(1).tolist())


@copies
def packing(masked: bool) -> tuple[ek.ExitModel, tuple[Tensor, ...]]:
    """A wrapped network whose example had three pieces of text a row, and that example."""
    (x, t), text = noise(5, 3), torch.randn(5, 4, 8)
    alike = (torch.arange(4) < 3).expand(5, 4)
    example = (x, t, text, alike) if masked else (x, t, text)
    return ek.wrap(Packed().eval(), "relative", example_inputs=example), (x, t, text)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lengths", [[1, 2, 1, 3, 2], [2, 2, 2, 2, 2], [4, 1, 1, 1, 3]])
def test_packed_text_of_several_lengths_where_the_example_had_one(
    lengths: list[int], masked: bool
) -> None:
    model, given = packing(masked)
    args = (*given, torch.arange(4) < torch.tensor(lengths)[:, None])
    check(model, args, [tuple(a[i : i + 1] for a in args) for i in range(5)])


class Counted(nn.Module):
    """Takes text apart by a tensor with the length of each row's, or by its equal shares."""

    def __init__(self, by_lengths: bool) -> None:
        super().__init__()
        self.by_lengths, self.linear = by_lengths, nn.Linear(4, 4)

    def forward(self, x: Tensor, text: Tensor, counts: Tensor) -> Tensor:
        share = [len(text) // len(x)] * len(x)
        parts = text.split(counts.tolist() if self.by_lengths else share)
        told = torch.stack([part.mean(0) for part in parts])[:, None] + counts.view(-1, 1, 1) / 10
        return x + torch.tanh(self.linear(x + told))


class CountedNet(nn.Module):
    def __init__(self, by_lengths: bool, running: bool = False) -> None:
        super().__init__()
        self.running = running
        self.blocks = nn.ModuleList([Counted(by_lengths) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        x, text = x + t[:, None, None] / 1000, text[mask]
        counts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]) if self.running else counts
        for block in self.blocks:
            x = block(x, text, counts)
        return x


def counted(lengths: list[int], counts: list[int]) -> tuple[Tensor, ...]:
    text = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(7))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    return *noise(), text, mask, torch.tensor(counts)


@copies
def counting(by_lengths: bool) -> ek.ExitModel:
    net = CountedNet(by_lengths).eval()
    return ek.wrap(net, "relative", example_inputs=counted([3] * 5, [3] * 5))


@pytest.mark.parametrize("by_lengths", [True, False])
@pytest.mark.parametrize("lengths", [[2, 5, 3, 1, 1], [4, 1, 3, 6, 1], [3] * 5])
def test_a_tensor_of_lengths_takes_text_apart_and_another_tensor_of_numbers_does_not(
    by_lengths: bool, lengths: list[int]
) -> None:
    model = counting(by_lengths)
    # Without lengths every row has as much, whatever the numbers sum up to.
    args = counted(lengths if by_lengths else [3] * 5, lengths)
    check(model, args, [tuple(a[i : i + 1] for a in args) for i in range(5)])


def test_numbers_that_fit_but_are_no_lengths_are_an_error() -> None:
    model = counting(True)
    model.policy = ScriptedExit((1, 4, 2, 3, 1))
    with pytest.raises((PlanMismatchError, RuntimeError)), torch.no_grad():
        model(*counted([2, 5, 3, 1, 1], [5, 2, 3, 1, 2]))


def test_running_sums_of_lengths_are_refused_by_name() -> None:
    net = CountedNet(True, running=True)
    net.blocks = nn.ModuleList([Running() for _ in range(4)])
    with pytest.raises(UnsupportedBackboneError, match=r"in doubt: counts of blocks.0"):
        ek.wrap(net.eval(), "relative", example_inputs=counted([3] * 5, [3] * 5))


class Running(Counted):
    """Variable-length kernels take where each row's text begins: `cu_seqlens`."""

    def __init__(self) -> None:
        super().__init__(by_lengths=True)

    def forward(self, x: Tensor, text: Tensor, counts: Tensor) -> Tensor:
        return super().forward(x, text, counts.diff())


class Holding(Block):
    held: Tensor | None = None

    def forward(self, x: Tensor, c: Tensor, *more: Any) -> Tensor:
        x = super().forward(x, c)
        return x if self.held is None else x + self.read(x)

    def read(self, x: Tensor) -> Tensor:
        assert self.held is not None
        return self.held


class Slicing(Holding):
    def read(self, x: Tensor) -> Tensor:
        assert self.held is not None
        return self.held[: len(x)]  # right for the first rows, wrong without a sign for others


class Noting(Holding):
    def read(self, x: Tensor) -> Tensor:
        return torch.zeros(())  # looks at the size alone, or at nothing


@copies
def holding(block: type[Holding], rows: int) -> tuple[Net, ek.ExitModel]:
    net = Net()
    net.blocks = nn.ModuleList([block() for _ in range(4)])
    return net, ek.wrap(net.eval(), "relative", example_inputs=noise(rows))


@pytest.mark.parametrize("script", [(1, 5, 5, 1, 1), (4, 1, 1, 1, 1), (1, 1, 1, 1, 4)])
@pytest.mark.parametrize("block", [Holding, Slicing])
@torch.no_grad()
def test_rows_in_attributes_that_the_example_did_not_show(
    block: type[Holding], script: tuple[int, ...]
) -> None:
    net, model = holding(block, 5)
    x, t = noise()
    for each in net.blocks:
        each.held = torch.randn(5, 1, 8)
    model.policy = ScriptedExit(tuple(min(depth, 4) for depth in script))
    with pytest.raises(PlanMismatchError, match=r"'blocks.1' holds rows in attributes \(held\)"):
        model(x, t)
    model.policy = NeverExit()
    assert torch.equal(model(x, t), net(x, t))


@pytest.mark.parametrize("block", [Holding, Slicing])
@torch.no_grad()
def test_rows_in_attributes_that_are_set_behind_a_first_call(block: type[Holding]) -> None:
    net, model = holding(block, 5)
    x, t = noise()
    model.policy = ScriptedExit((1, 4, 4, 1, 1))
    model(x, t)
    for each in net.blocks:
        each.held = torch.randn(5, 1, 8)
    for _ in range(2):  # what raised has not been tried
        with pytest.raises(
            PlanMismatchError, match=r"'blocks.1' holds rows in attributes \(held\)"
        ):
            model(x, t)
    for each in net.blocks:
        each.held = torch.randn(1, 1, 8)  # the control: one for all
    model.policy = NeverExit()
    full = model(x, t)
    model.policy = ScriptedExit((1, 4, 4, 1, 1))
    torch.testing.assert_close(model(x, t)[1:3], full[1:3], atol=atol, rtol=0)


@torch.no_grad()
def test_attributes_with_rows_that_nobody_reads_do_no_harm() -> None:
    net, model = holding(Noting, 5)
    for each in net.blocks:
        each.held = torch.randn(5, 1, 8)
    args = noise()
    check(model, args, [tuple(a[i : i + 1] for a in args) for i in range(5)])
