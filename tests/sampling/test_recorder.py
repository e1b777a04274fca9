"""What is recorded of a loop: branches by place, shape and plain arguments; what moves from step to step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.sampling.recorder import RolloutRecorder
from tests.backbones import TokenNet, perturb


class Conditioned(nn.Module):
    """A residual network with a condition for each row, one for all, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perturb(TokenNet(depth=4, dim=16).eval())

    def forward(
        self, x: Tensor, t: Tensor, c: Tensor, scale: Tensor, negate: bool = False
    ) -> Tensor:
        y = self.inner(x + c[:, :, None, None], t) * scale
        return -y if negate else y


def wrapped() -> ek.ExitModel:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    inputs = {
        "x": x,
        "t": torch.tensor([5, 700]),
        "c": torch.randn(2, 3),
        "scale": torch.tensor(1.0),
    }
    return ek.wrap(Conditioned(), "relative", example_inputs=inputs)


def record(announced: bool = True, calls: int = 2) -> tuple[ek.ExitModel, RolloutRecorder, list]:
    model, recorder, seen = wrapped(), RolloutRecorder(None, hidden=True), []
    source = torch.Generator().manual_seed(1)
    fixed = torch.randn(2, 3, generator=source)
    x = torch.randn(2, 3, 4, 4, generator=source)
    recorder.start(torch.tensor([0, 1]))
    with torch.no_grad():
        for step in range(4):
            if announced:
                recorder.next_call()
            for call in range(calls):
                c = fixed if call else torch.randn(2, 3, generator=source)
                given = {"c": c, "scale": torch.tensor(1.0 + step), "negate": bool(call)}
                t = torch.full((2,), 900 - 100 * step)
                y = recorder.call(model, (x, t), given)
                seen.append((x.clone(), t, {k: v for k, v in given.items()}, y))
                x += 0.1 * y  # in place, as loops do
                c += 1.0
                fixed = fixed if call else fixed
    return model, recorder, seen


@pytest.mark.parametrize("announced", [True, False])
def test_branches_are_the_calls_of_a_step(announced: bool) -> None:
    _, recorder, _ = record(announced)
    rollouts = recorder.rollouts()
    assert [(r.steps, r.rows) for r in rollouts] == [(4, 2), (4, 2)]
    assert [r.given.values["negate"] for r in rollouts] == [False, True]


def test_arguments_that_move_are_those_of_their_step() -> None:
    model, recorder, seen = record(calls=1)
    (rollout,) = recorder.rollouts(model)
    assert set(rollout.moving) == {"c", "scale"}
    steps, rows = torch.tensor([3, 0, 2, 1]), torch.tensor([1, 0, 0, 1])
    for step, row in zip(steps, rows, strict=True):
        call = rollout.at(step[None], row[None])
        with torch.no_grad():
            made = model.backbone(*call.args, **call.kwargs)
        torch.testing.assert_close(made, seen[int(step)][3][row][None])
    assert recorder.rollouts(wrapped()) == []


def test_any_rows_in_any_order_keep_their_conditions() -> None:
    """Also as many as there are, which are not all of them in order."""
    model, recorder = wrapped(), RolloutRecorder(None, hidden=False)
    recorder.start(torch.tensor([0, 1]))
    given = {"c": torch.randn(2, 3), "scale": torch.tensor(2.0)}
    with torch.no_grad():
        for step in range(2):
            recorder.next_call()
            recorder.call(model, (torch.randn(2, 3, 4, 4), torch.full((2,), 500 - step)), given)
    (rollout,) = recorder.rollouts()
    assert not rollout.moving
    for rows in ([1, 0], [1, 1], [0, 1], [1]):
        steps = torch.zeros(len(rows), dtype=torch.long)
        call = rollout.at(steps, torch.tensor(rows))
        assert torch.equal(call.kwargs["c"], given["c"][rows])
        with torch.no_grad():
            made = model.backbone(*call.args, **call.kwargs)
        torch.testing.assert_close(made, rollout.prediction[0, rows])


def test_other_shapes_are_other_branches() -> None:
    model, recorder = wrapped(), RolloutRecorder(None, hidden=False)
    recorder.start(torch.tensor([0]))
    with torch.no_grad():
        for step in range(3):
            recorder.next_call()
            for rows in (2, 1):
                given = {"c": torch.zeros(rows, 3), "scale": torch.tensor(1.0)}
                t = torch.full((rows,), 500 - step)
                recorder.call(model, (torch.randn(rows, 3, 4, 4), t), given)
    assert [(r.steps, r.rows) for r in recorder.rollouts()] == [(3, 2), (3, 1)]
