"""What a dry run records, against closed forms and torch's own hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import TracingError
from exitkit.surgery.dry_run import DryRun, keep_common, moved, moved_entries, undisturbed
from exitkit.surgery.inputs import Bound, bind, signature_of
from tests.backbones import case


def bound(net: nn.Module, *args: Tensor) -> Bound:
    return bind(signature_of(net.forward), args, {})


@pytest.mark.parametrize("how", ["operators", "layers"])
def test_macs_have_a_closed_form(how: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(16, 5), nn.GELU(), nn.Linear(5, 2)
    )
    run = DryRun(net, count_macs=how).run(bound(net, torch.randn(2, 3, 4, 4)))
    each = [2 * 16 * 8 * 3 * 9, 0, 2 * 8 * 16 * 5, 0, 2 * 8 * 5 * 2]
    assert [c.path for c in run.calls] == ["", "0", "1", "2", "3", "4"]
    assert [c.macs for c in run.calls] == [sum(each), *each]


def test_layers_alone_leave_attention_out() -> None:
    net = case("timm_vit").make()
    args, _ = case("timm_vit").inputs(2)
    all_of_it, layers = (
        DryRun(net, count_macs=how).run(bound(net, *args)).calls[0].macs
        for how in ("operators", "layers")
    )
    tokens, width, depth = 17, 24, 4
    assert all_of_it - layers == 2 * depth * 2 * tokens * tokens * width


def test_calls_are_those_of_hooks() -> None:
    net = case("shared_block").make()
    args, _ = case("shared_block").inputs(2)
    seen: list[str] = []
    handles = [
        m.register_forward_pre_hook(lambda m, a, path=path: seen.append(path))
        for path, m in net.named_modules()
    ]
    net(*args)
    for handle in handles:
        handle.remove()
    run = DryRun(net).run(bound(net, *args))
    assert [c.path for c in run.calls] == seen
    assert [c.nth for c in run.calls if c.path == "block"] == [0, 1, 2, 3]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(("name", "expected"), [("inplace_blocks", True), ("value_branch", False)])
def test_changes_in_place_are_seen(name: str, expected: bool) -> None:
    net = case(name).make()
    run = DryRun(net).run(bound(net, *case(name).inputs(2)[0]))
    hidden = {c.outputs[""].token for c in run.calls if c.path in case(name).stages}
    assert bool(hidden & run.written) == expected


def test_entries_that_move_are_named() -> None:
    net, x = nn.Identity(), torch.randn(4, 5, 6)
    changed = x.clone()
    changed[2, 1:3] += 1
    first, second, again = (
        DryRun(net).run(bound(net, v)).calls[0].outputs[""] for v in (x, changed, x)
    )
    assert [moved_entries(first, second, axis) for axis in range(3)] == [[2], [1, 2], [*range(6)]]
    assert moved(first, second) and not moved(first, again)


def test_a_failure_shows_the_inputs_and_leaves_no_hook() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 4))
    with pytest.raises(TracingError, match=r"Sequential could not be run .*input \(2, 3\).*mat1"):
        DryRun(net).run(bound(net, torch.randn(2, 3)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("guarded", [True, False])
def test_statistics_flags_and_random_numbers_are_given_back(guarded: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    net[2].eval()
    before, state = net[1].running_mean.clone(), torch.random.get_rng_state()
    if guarded:
        with undisturbed(net):
            assert not net[1].training
            net.train()(torch.randn(8, 3))
    else:
        net(torch.randn(8, 3))
    kept = torch.equal(net[1].running_mean, before)
    assert kept == torch.equal(torch.random.get_rng_state(), state) == guarded
    assert [m.training for m in net] == [True, True, False]


class Side(nn.Module):
    """Calls a side network once for every two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        for part in x.split(2):
            self.side(part)
        return self.main(x)


def test_calls_that_come_more_often_with_more_rows_are_dropped() -> None:
    net = Side()
    two, three = (DryRun(net).run(bound(net, torch.randn(n, 3))) for n in (2, 3))
    assert [c.path for c in two.calls] == ["", "side", "side.0", "main"]
    assert [c.path for c in three.calls] == ["", "side", "side.0", "side", "side.0", "main"]
    keep_common([two, three])
    for run in (two, three):
        assert [(c.path, c.parent) for c in run.calls] == [("", None), ("main", 0)]
