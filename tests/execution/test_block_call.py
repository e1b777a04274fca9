"""One call of one block, against the block run on the rows alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import PlanMismatchError
from exitkit.execution.arguments import Arguments
from exitkit.execution.block_call import BlockCall
from exitkit.execution.block_runner import BlockRunner
from exitkit.execution.row_index import RowIndex
from tests.backbones import case


class Caught(BlockRunner):
    """Keeps each call and runs it for all rows."""

    calls: list[BlockCall]

    def call(self, gate, site, args, kwargs):
        call = BlockCall(Arguments(gate, site, args, kwargs, self.batch), self.stream)
        self.calls.append(call)
        return call.run(None)[0]


def caught(name: str, batch: int = 4) -> tuple[ek.ExitModel, list[BlockCall]]:
    from exitkit.execution.gate import CURRENT

    one = case(name)
    args, kwargs = one.inputs(batch)
    model = ek.wrap(one.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))
    runner = Caught(model._executor.gates, model.plan, batch)
    runner.calls = []
    token = CURRENT.set(runner)
    try:
        with torch.no_grad():
            model.backbone(*args, **kwargs)
    finally:
        CURRENT.reset(token)
    return model, runner.calls


@pytest.mark.parametrize("name", ["uvit", "unet", "timm_vit"])
def test_some_rows_are_what_the_block_gives_them_alone(name: str) -> None:
    _, calls = caught(name)
    live = RowIndex(torch.tensor([0, 2]), 4)
    for call in calls:
        with torch.no_grad():
            full, alone = call.run(None)[0], call.run(live)[0]
        one, two = call.hidden(full), call.hidden(alone)
        leaf = call.site.outputs[call.site.call.hidden_out or ""]
        torch.testing.assert_close(live.select(one, leaf), live.select(two, leaf))


@pytest.mark.parametrize("name", ["uvit", "unet"])
def test_a_hidden_state_is_read_back_as_it_was_put(name: str) -> None:
    _, calls = caught(name)
    for call in calls:
        with torch.no_grad():
            out = call.run(None)[0]
            wanted = torch.randn_like(call.hidden(out))
            found = call.hidden(call.with_hidden(out, wanted))
        torch.testing.assert_close(found, wanted)


def test_a_skipped_block_hands_on_what_came_in() -> None:
    _, calls = caught("uvit")
    nobody = RowIndex(torch.empty(0, dtype=torch.long), 4)
    for call in calls:
        out, ran = call.run(nobody)
        assert ran == 0 and torch.equal(call.hidden(out), call.entering)


def test_a_block_that_runs_too_often_is_named() -> None:
    model, calls = caught("uvit")
    runner = Caught(model._executor.gates, model.plan, 4)
    runner.calls, gate = [], calls[0].gate
    given = calls[0].given
    runner.through(gate, given.args, given.kwargs)
    with pytest.raises(PlanMismatchError, match=r"block 'in_blocks.0' ran 2 times, 1 times"):
        runner.through(gate, given.args, given.kwargs)


class Scaled(nn.Module):
    """Hands one condition to all blocks, and changes it on the way if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Shifted() for _ in range(4))
        self.tail = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor, grow: bool = False, bend: bool = False) -> Tensor:
        shift, h = t.float()[:, None].expand(-1, 8) / 1000 + 0.0, x
        for block in self.blocks:
            h = block(h, shift)
            if grow:
                shift.add_(1.0)
            if bend:
                h.mul_(0.5)
        out: Tensor = self.tail(h)
        return out


class Shifted(nn.Module):
    """One linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(h) + shift)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", [{}, {"grow": True}, {"bend": True}])
def test_kept_rows_are_dropped_where_somebody_writes_in_place(mode, change) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(4, 8), torch.tensor([1, 300, 600, 900])
    model = ek.wrap(Scaled().eval(), "relative", example_inputs=(x, t))
    depths = (1, 4, 2, 4)
    with mode():
        model.policy = ek.policies.ScriptedExit(depths)
        if "bend" in change and mode is torch.enable_grad:
            pytest.skip("the network itself cannot do this with gradients")
        together = model(x, t, **change)
        for row, depth in enumerate(depths):
            model.policy = ek.policies.ScriptedExit((depth,))
            alone = model(x[row : row + 1], t[row : row + 1], **change)
            torch.testing.assert_close(together[row : row + 1], alone)
