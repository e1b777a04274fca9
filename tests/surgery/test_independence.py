"""Whether rows keep apart, seen from two rows and from three."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.surgery.batch_axes import learn_leaves
from exitkit.surgery.dry_run import DryRun
from exitkit.surgery.independence import MORE, ROWS, coupled, row_list, same_row
from exitkit.surgery.inputs import bind, signature_of


class Inner(nn.Module):
    """A module of its own, so that what happens inside is a call."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x)


class Heap(nn.Module):
    """Hands the tokens of all rows to a module in one sorted heap, and gives each its own back."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.expert(x[order])[order.argsort()]


def runs(net: nn.Module) -> tuple[DryRun, DryRun, DryRun]:
    three = torch.randn(MORE, 4)
    changed = three[:ROWS].clone()
    changed[0] += 3
    signature = signature_of(net.forward)
    base, perturbed, other = (
        DryRun(net).run(bind(signature, (x,), {})) for x in (three[:ROWS], changed, three)
    )
    return base, perturbed, other


def chain(work: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Inner(work))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (chain(torch.tanh), False),
        (chain(lambda x: x - x.mean(0)), True),
        (chain(lambda x: x.flip(0)), True),
        (chain(lambda x: x - x.mean(1, keepdim=True)), False),
        (nn.Sequential(Heap()), False),
        (chain(lambda x: x.mean(1)), False),
        (chain(lambda x: x.mean(1).cumsum(0)), True),
    ],
    ids=[
        "apart",
        "mean of the batch",
        "another's row",
        "mean of the row",
        "heap",
        "a number a row",
        "a running number",
    ],
)
def test_rows_that_see_each_other_are_seen(net: nn.Module, expected: bool) -> None:
    assert coupled(*runs(net)) == expected


def learned(net: nn.Module) -> bool:
    base, perturbed, other = runs(net)
    first = (run.calls[0].outputs for run in (base, perturbed, other))
    return same_row(base, other, learn_leaves(*first, ROWS, MORE))


def test_a_row_that_depends_on_the_number_of_rows_is_seen() -> None:
    assert learned(chain(torch.tanh))
    assert not learned(chain(lambda x: x * x.shape[0]))
    assert learned(chain(lambda x: x * (1 + 1e-6 * x.shape[0]))), "kernels round differently"


def test_a_list_with_a_tensor_for_each_row_is_found() -> None:
    def listed(work: Callable[[Tensor], object]) -> str | None:
        base, _, other = runs(Inner(work))  # type: ignore[arg-type]
        return row_list(base, other)

    assert listed(lambda x: list(x)) == ""
    assert listed(lambda x: {"note": x, "rows": tuple(x)}) == ".rows"
    assert listed(lambda x: [x, x]) is None


class Grouped(nn.Module):
    """Every row looks at the first of its half of the batch, as frames of a video do (Text2Video-Zero)."""

    def __init__(self, half: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.half = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), half

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = x + t[:, None] / 1000
        for block in self.blocks:
            first = h
            if len(h) % 2 == 0:
                groups = h.unflatten(0, (2, -1) if self.half else (-1, 2))
                first = (groups[:, :1] if self.half else groups[:1]).expand_as(groups).flatten(0, 1)
            h = h + torch.tanh(block(h + (first if len(h) > 2 else h)))
        return h


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("rows", [2, 4])
def test_rows_that_see_each_other_in_groups_are_refused(half: bool, rows: int) -> None:
    args = torch.randn(rows, 8), torch.arange(1, rows + 1) * 100
    with pytest.raises(UnsupportedBackboneError, match="rows of a batch of four see each other"):
        ek.wrap(Grouped(half).eval(), example_inputs=args)


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = x + 0.1 * torch.randn_like(x) + t[:, None] / 1000
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return h


def test_noise_that_is_drawn_for_each_row_is_no_group() -> None:
    args = torch.randn(4, 8), torch.arange(1, 5) * 100
    assert len(ek.wrap(Drawing().eval(), example_inputs=args).exits) == 2
