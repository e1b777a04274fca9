"""Rows of one forward: what each has changed, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exitkit.surgery.coded_forward import CodedForward
from exitkit.surgery.experiments import Experiment
from tests.landing_networks import IMAGE, TOKENS, Chain, Outside, UNet, WaveNet, example
from tests.surgery.test_read_graph import seeded, trials_on


def inputs_of(net: nn.Module, paths: list[str]) -> dict[str, Tensor]:
    """What enters modules in the next forward."""
    seen: dict[str, Tensor] = {}
    for path in paths:
        net.get_submodule(path).register_forward_pre_hook(
            lambda m, args, path=path: seen.__setitem__(path, args[0].clone())
        )
    return seen


@pytest.mark.parametrize(("net", "shape"), [((UNet, "cat"), IMAGE), ((WaveNet,), TOKENS)])
def test_the_first_and_the_last_row_are_what_the_network_gives_alone(net, shape) -> None:
    model = seeded(*net)
    subject = trials_on(model, shape).subject
    run = CodedForward(subject, [Experiment({(2, "hidden"): 1.0})], control=True)
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda m, a, out: outputs.append(out))
    run.run()
    x, t = example(shape)
    with torch.no_grad():
        alone = model(x[:1], t[:1])
    torch.testing.assert_close(outputs[0][:1], alone)
    torch.testing.assert_close(outputs[0][2:], alone)
    assert not run.draws


def test_later_stages_give_what_they_gave() -> None:
    net = seeded(Chain)
    subject = trials_on(net, TOKENS).subject
    entered = inputs_of(net, [f"blocks.{n}" for n in range(5)])
    CodedForward(subject, [Experiment({(2, "hidden"): 1.0})]).run()
    apart = [
        not torch.allclose(entered[f"blocks.{n}"][0], entered[f"blocks.{n}"][1]) for n in range(5)
    ]
    assert apart == [False, False, True, False, False]


def test_the_state_and_the_output_are_changed_by_the_same() -> None:
    net = seeded(Outside, scale=0.5)
    subject = trials_on(net, TOKENS).subject
    entered = inputs_of(net, ["layers.4.1", "out.0"])
    pair = [Experiment(base=0), Experiment(base=0, scale=0.5), Experiment(base=0, scale=1.0)]
    run = CodedForward(subject, pair)
    run.run()
    change = entered["layers.4.1"][1] - entered["layers.4.1"][0]
    assert float(change.std()) > 0.1
    behind = entered["out.0"] - entered["out.0"][0]
    torch.testing.assert_close(behind[1], change)
    torch.testing.assert_close(behind[2], change)
    torch.testing.assert_close(behind[3], change / 2)
    assert all(6 in finding.readers and finding.behind for finding in run.findings)


class Written(nn.Module):
    """A block that writes into its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(torch.tanh(self.linear(x)))


class Dropped(Chain):
    """Calls blocks and goes on with what it gave them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Written() for _ in range(5)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x) + t[:, None, None] / 1000
        for block in self.blocks:
            block(x)
        return self.out(x)


def test_what_a_block_in_place_gives_is_changed_where_the_caller_holds_it() -> None:
    net = seeded(Dropped)
    run = CodedForward(trials_on(net, TOKENS).subject, [Experiment({(2, "hidden"): 1.0})])
    entered = inputs_of(net, [f"blocks.{n}" for n in range(5)])
    run.run()
    apart = [
        not torch.allclose(entered[f"blocks.{n}"][0], entered[f"blocks.{n}"][1]) for n in range(5)
    ]
    assert apart == [False, False, True, False, False]
    assert run.findings[0].readers == {3}
