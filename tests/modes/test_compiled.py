"""A compiled network is the network inside; dry runs compile nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.modes.compiled import eager, in_python, uncompiled
from exitkit.policies import FixedExit, NeverExit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(4)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t[:, None, None] / 1000
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


class Counting:
    """A backend of `torch.compile` that counts the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> object:
        self.graphs += 1
        return graph.forward


pytestmark = [  # PyTorch's own, of its tracing
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there:UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

X, T = torch.randn(3, 4, 6), torch.tensor([700.0, 400.0, 90.0])


IN_PARTS = ("in place", "blocks", "blocks in place")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def built() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_what_is_inside() -> None:
    net = built()
    assert uncompiled(torch.compile(net)) is net and uncompiled(net) is net
    wrapper = nn.Sequential(torch.compile(net))
    assert uncompiled(wrapper) is wrapper, "a part that is compiled stays where it is"


def test_a_compiled_network_has_the_plan_of_the_network() -> None:
    net = built()
    plan = ek.inspect(net, example_inputs=(X, T))
    backend = Counting()
    compiled = torch.compile(net, backend=backend)
    found = ek.inspect(compiled, example_inputs=(X, T))
    assert (found.noisy, found.timestep) == ("x", "t")
    assert found.stages == plan.stages and found.boundaries == plan.boundaries
    assert backend.graphs == 0
    torch.testing.assert_close(compiled(X, T), net(X, T))
    assert backend.graphs > 0, "the control: a call compiles"


@pytest.mark.parametrize(
    "how", ["whole", *(pytest.param(how, marks=pytest.mark.slow) for how in IN_PARTS)]
)
def test_exits_of_what_is_compiled(how: str) -> None:
    net, plain = built(), built()
    backend, given = Counting(), net
    if how == "whole":
        given = torch.compile(net, backend=backend)
    elif how == "in place":
        net.compile(backend=backend)
    else:
        for i, block in enumerate(net.blocks):
            if how == "blocks":
                net.blocks[i] = torch.compile(block, backend=backend)
            else:
                block.compile(backend=backend)
    wanted = ek.wrap(plain, example_inputs=(X, T), exits=("*",))
    model = ek.wrap(given, example_inputs=(X, T), exits=("*",))
    assert backend.graphs == 0
    assert [e.path for e in model.exits] == [e.path for e in wanted.exits]
    for policy in (NeverExit(), FixedExit(2)):
        model.policy = wanted.policy = policy
        torch.testing.assert_close(model(X, T), wanted(X, T))
    bare = ek.unwrap(wanted)
    torch.testing.assert_close(given(X, T), bare(X, T))
    assert ek.unwrap(model) is given
    torch.testing.assert_close(given(X, T), bare(X, T))


def test_nothing_compiles_inside() -> None:
    backend = Counting()
    compiled = torch.compile(built(), backend=backend)
    with torch.no_grad():
        with eager():
            compiled(X, T)
        assert backend.graphs == 0
        compiled(X, T)
    assert backend.graphs > 0


@pytest.mark.parametrize("ours", [True, False])
def test_a_body_that_stays_in_python(ours: bool) -> None:
    backend = Counting()

    def body(x: Tensor) -> Tensor:
        return x.sin() + 1

    kept = in_python(body) if ours else body
    torch.testing.assert_close(
        torch.compile(lambda x: kept(x), backend=backend)(X), X.sin() + 1, rtol=0, atol=0
    )
    assert (backend.graphs == 0) is ours
