"""The second view by torch.fx: it agrees, or says why it cannot tell, or the order is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import PlanMismatchError
from exitkit.surgery.tracing import check_agreement, graph_view
from tests.backbones import case


def test_stages_come_in_the_order_of_the_graph() -> None:
    for name in ("sequential_cnn", "shared_block", "encoder_sequence_first"):
        one = case(name)
        net = one.make()
        seen = graph_view(net, one.stages)
        assert seen == one.stages or isinstance(seen, str), name
    assert graph_view(case("sequential_cnn").make(), case("sequential_cnn").stages) == (
        "1.0",
        "1.1",
        "1.2",
        "1.3",
    )


def test_what_cannot_be_traced_leaves_the_word_to_dry_runs() -> None:
    one = case("value_branch")
    said = check_agreement(one.make(), one.stages)
    assert "cannot trace" in said and "TraceError" in said and "dry runs decide alone" in said


def test_another_order_is_refused() -> None:
    one = case("sequential_cnn")
    net = one.make()
    assert check_agreement(net, one.stages).startswith("torch.fx traces 4 block calls")
    with pytest.raises(PlanMismatchError, match="disagree on the order of blocks"):
        check_agreement(net, one.stages[::-1])


class Constant(nn.Module):
    """Adds a tensor that is no parameter, which torch.fx parks on the root."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) + torch.ones(3)
        return x


def test_tracing_leaves_nothing_on_the_module() -> None:
    net = Constant()
    before = set(vars(net))
    torch.fx.symbolic_trace(net)
    assert set(vars(net)) > before, "torch.fx parks nothing any more"
    net = Constant()
    assert graph_view(net, ("blocks.0", "blocks.1")) == ("blocks.0", "blocks.1")
    assert set(vars(net)) == before


SEEN: list[object] = []  # what hangs on a network is put back


class Slow(nn.Module):
    """Blocks that give other threads time while they are traced."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.wait = wait
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            self.wait()
            x = x + block(x)
        return x


def test_another_thread_runs_and_traces_networks_meanwhile() -> None:
    other, x = Slow(), torch.randn(2, 3)
    wanted, paths = other(x), tuple(f"blocks.{i}" for i in range(4))
    met = threading.Event()

    def at_once() -> None:
        met.wait(10)
        SEEN.append(torch.equal(other(x), wanted))  # while `Slow` below stands in its first block
        SEEN.append(graph_view(other, paths))

    thread = threading.Thread(target=at_once)
    thread.start()

    def wait() -> None:
        met.set()
        for _ in range(200):
            if SEEN:
                return
            time.sleep(0.01)

    assert graph_view(Slow(wait), paths) == paths
    thread.join(10)
    assert [True, paths] == SEEN
    assert torch.equal(other(x), wanted)
