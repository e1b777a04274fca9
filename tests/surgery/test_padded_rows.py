"""Hidden states padded to the longest row: said, and refused where exits would read them by places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import BoundaryError, DoubtWarning


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x) + c[:, None])


class Joint(nn.Module):
    """Two blocks on the image; then text without its padding and image in one sequence, padded behind."""

    def __init__(self, padded: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.text, self.time = nn.Linear(2, 8), nn.Linear(3, 8), nn.Linear(1, 8)
        self.before = nn.ModuleList(Block() for _ in range(2))
        self.joint = nn.ModuleList(Block() for _ in range(3))
        self.out, self.padded = nn.Linear(8, 2), padded

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        h, c = self.into(x), self.time(t.float().view(-1, 1) / 1000)
        for block in self.before:
            h = block(h, c)
        counts = mask.sum(1).tolist() if self.padded else [mask.shape[1]] * len(x)
        rows = [torch.cat([self.text(text[i, :n]), h[i]]) for i, n in enumerate(counts)]
        h = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        for block in self.joint:
            h = block(h, c)
        return self.out(torch.stack([h[i, n : n + x.shape[1]] for i, n in enumerate(counts)]))


def call(*lengths: int) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    rows = len(lengths)
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()
    return (
        torch.randn(rows, 4, 2),
        torch.tensor([900, 500, 300][:rows]),
        torch.randn(rows, 4, 3),
        mask,
    )


@pytest.mark.parametrize("preset", ["relative", "official"])
def test_it_is_said_and_exits_that_land_are_right(preset: str) -> None:
    net, args = Joint().eval(), call(2, 4, 1)
    with pytest.warns(
        DoubtWarning, match=r"joint.0, joint.1, joint.2 a row is as long as the longest"
    ):
        model = ek.wrap(net, preset, example_inputs=args, exits=("*",))
    assert model.plan.padded == (3, 4, 5) and "counts padding" in str(
        ek.inspect(net.__class__(), example_inputs=args)
    )
    for depth in range(1, 5):
        model.policy = ek.policies.ScriptedExit((depth, 5, 2))
        with torch.no_grad():
            among = model(*args)
            model.policy = ek.policies.FixedExit(depth)
            alone = model(*(a[:1] for a in args))
        torch.testing.assert_close(among[:1], alone, atol=1e-5, rtol=0)


def test_exits_with_outputs_of_their_own_are_refused_there() -> None:
    match = r"behind joint.0, joint.1 a row is as long.*relative, carried"
    with pytest.raises(BoundaryError, match=match), pytest.warns(DoubtWarning):
        ek.wrap(Joint().eval(), "paper", example_inputs=call(2, 4, 1))
    with pytest.warns(DoubtWarning):
        model = ek.wrap(Joint().eval(), "paper", example_inputs=call(2, 4, 1), exits=("before.*",))
    assert [e.path for e in model.exits] == ["before.0", "before.1"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("net", "args"), [(Joint(False), call(2, 4, 1)), (Joint(), call(3, 3, 3))])
def test_rows_of_one_length_are_no_matter(net: Any, args: Any) -> None:
    model = ek.wrap(net.eval(), "paper", example_inputs=args)
    assert model.plan.padded == () and len(model.exits) == 4
