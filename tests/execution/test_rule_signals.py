"""What a forward keeps for its rule: what the rule needs, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import exitkit as ek
from tests.backbones import case
from tests.execution.test_signals import _Reader, made, run


def kept(model: ek.ExitModel, args: tuple[Tensor, ...], rule: _Reader) -> list[Any]:
    """What stands of the exit before, exit by exit."""
    run(model, args, rule)
    forward = rule.seen[0]._forward  # type: ignore[attr-defined]
    return [forward.before, forward.entry]


def test_the_run_keeps_what_the_rule_needs_and_nothing_else() -> None:
    model, args = made()
    before, entry = kept(model, args, _Reader("hidden"))
    assert before is None and entry is None
    before, entry = kept(model, args, _Reader("entry"))
    assert before is None and entry is not None
    before, _ = kept(model, args, _Reader("previous_hidden"))
    assert before.hidden is not None and before.prediction is None
    # Nobody asked for predictions, so the hidden state is kept to make one if somebody does.
    before, _ = kept(model, args, _Reader("previous_prediction"))
    assert before.hidden is not None and before.prediction is None


def test_the_entry_is_what_the_first_block_is_given() -> None:
    model, args = made()
    given: list[Tensor] = []
    first = model.backbone.in_blocks[0]
    first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
    _, entry = kept(model, args, _Reader("entry"))
    assert torch.equal(entry, given[0])


def test_what_is_kept_survives_blocks_that_work_in_place() -> None:
    """Against hidden states that a hook copied when they were made."""
    backbone = case("inplace_blocks")
    args, _ = backbone.inputs(3)
    model = ek.wrap(backbone.make(), "relative", example_inputs=args)
    assert model.plan.in_place
    copies: list[Tensor] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda _, inputs, out: copies.append(out.clone()))
    before, _ = kept(model, args, _Reader("previous_hidden"))
    wanted = copies[before.point.boundary.stage - 1]
    assert torch.equal(before.hidden, wanted)
    # Negative control: the block behind has changed it since.
    assert not torch.equal(wanted, copies[before.point.boundary.stage])
