"""A policy of your own in twenty lines: leave where the hidden state stops changing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import exitkit as ek
from examples.own_backbone import Denoiser
from exitkit.policies import ExitRule, Tunable, policy_from_dict, register_policy
from exitkit.policies.fields import NonNegative
from exitkit.testing import check_policy


@register_policy
@dataclass(frozen=True)
class Settled(ExitRule):
    """A row leaves where the last block moved its hidden state by little.

    Arguments:
        change: Largest change, relative to the hidden state before.
    """

    change: NonNegative

    name: ClassVar[str] = "settled"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden", "previous_hidden"})
    tunable: ClassVar[Tunable] = Tunable("change", safe=0.0, cheap=10.0, log=True)

    def decide(self, signals: ek.policies.Signals) -> Tensor:
        now, before = signals.hidden(), signals.previous_hidden()
        if before is None:  # the first exit has nothing to compare with
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        moved = (now - before).flatten(1).norm(dim=1)
        return moved < self.change * before.flatten(1).norm(dim=1)


def main() -> None:
    # %% What every policy promises, checked on tables of signals.
    check_policy(Settled(0.5))

    # %% It saves with the model, by its fields, and is calibrated like any other: it names its `tunable`.
    assert policy_from_dict(Settled(0.5).to_dict()) == Settled(0.5)
    torch.manual_seed(0)
    x, t = torch.randn(4, 4, 4, 4), torch.tensor([900.0, 600.0, 300.0, 10.0])
    model = ek.wrap(Denoiser().eval(), "relative", example_inputs=(x, t))
    sampler = ek.Sampler("ddim", shape=(4, 4, 4), steps=10)
    found = ek.calibrate(model, sampler, budget=0.6, policy=Settled(0.5), seeds=8, progress=False)
    print(found)
    assert isinstance(found.policy, Settled) and 0.5 < found.cost < 0.63

    # %% Its decisions are those of a plain loop over the recorded hidden states.
    model.policy = found.policy
    with torch.no_grad():
        model(x, t)
        depth = model.trace.depth[0].tolist()
        hidden = model.record(x, t).hidden
    for row, taken in enumerate(depth):
        expected = len(model.exits) + 1
        for exit in range(2, len(model.exits) + 1):
            before, now = hidden[exit - 1][row], hidden[exit][row]
            if (now - before).norm() < found.policy.change * before.norm():
                expected = exit
                break
        assert taken == expected, (row, taken, expected)
    print(f"rows left at exits {depth}")


if __name__ == "__main__":
    main()
