"""What a denoiser's calls get while completion is solved, against the head's own forecast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.heads.completion.state import CompletionState, FullStep
from exitkit.pipelines.branch_calls import BranchCalls
from exitkit.sampling.linear_step import levels_of
from exitkit.sampling.solvers import make_solver
from tests.backbones import unet
from tests.copies import copies


@copies
def wrapped() -> Any:
    net = unet().eval()
    model = ek.wrap(
        net, "completion", example_inputs=(torch.randn(2, 3, 16, 16), torch.tensor([9, 20]))
    )
    times, levels, flow, predicts = levels_of(make_solver(DDPMScheduler(), 10))
    model.heads.completion.levels.place(times, levels, flow, predicts)
    return model


@torch.no_grad()
def test_full_steps_run_the_backbone_and_others_are_forecast() -> None:
    model = wrapped()
    net, head = model.backbone, model.heads.completion
    calls = BranchCalls(model, head, [True, True, False])
    through = type(net).forward.__get__(net)
    state: CompletionState | None = None
    for step, time in enumerate((900, 700, 500)):
        x, t = torch.randn(4, 3, 16, 16), torch.full((4,), time)
        with model.suspended():
            made = calls.answer(through, (x, t), {"return_dict": False})[0]
            wanted = net(x, t).sample if step < 2 else head.forecast(x, t, state)
        torch.testing.assert_close(made, wanted)
        if step < 2:
            kept = FullStep(x, wanted, t.float())
            state = CompletionState.start(kept) if state is None else state.followed(kept)
        assert calls.timestep == time
        parts, columns = calls.parts(2, made[:2])
        assert [len(part) for part in parts] == [2, 2] and len(columns[0]) == 5
        assert torch.equal(torch.cat(parts), made) and torch.equal(calls.first(2)[0], x[:2])
        with pytest.raises(ConfigError, match="brings predictions into another form"):
            calls.parts(2, made[:2].flatten(2))
        calls.next_step()


@torch.no_grad()
def test_calls_that_change_on_the_way_are_refused() -> None:
    model = wrapped()
    calls = BranchCalls(model, model.heads.completion, [True, True, False])
    through = type(model.backbone).forward.__get__(model.backbone)
    with model.suspended():
        for rows in (4, 4):
            calls.answer(through, (torch.randn(rows, 3, 16, 16), torch.full((rows,), 500)), {})
            calls.next_step()
        with pytest.raises(ConfigError, match="guidance that begins or ends on the way"):
            calls.answer(through, (torch.randn(2, 3, 16, 16), torch.full((2,), 300)), {})
