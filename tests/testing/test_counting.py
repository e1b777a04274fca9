"""Rows counted inside the blocks are those that the depths send there."""

from __future__ import annotations

import pytest
from torch import nn

import exitkit as ek
from exitkit.policies import NeverExit, ScriptedExit
from exitkit.surgery.inputs import Inputs
from exitkit.testing.batches import Batch
from exitkit.testing.counting import RowCounter
from tests.backbones import case


def counter_of(name: str, rows: int) -> tuple[RowCounter, nn.Module, ek.ExitModel]:
    backbone = case(name)
    args, kwargs = backbone.inputs(rows)
    module = backbone.make()
    model = ek.wrap(module, example_inputs=ek.Inputs(*args, **kwargs))
    return RowCounter(Batch(model, Inputs(*args, **kwargs))), module, model


@pytest.mark.parametrize("name", ["value_branch", "timm_vit", "dit", "folded_frames"])
def test_a_block_runs_the_rows_that_go_so_deep(name: str) -> None:
    counter, _, model = counter_of(name, 4)
    for depths in [(1, 1, 2, 4), (4, 3, 2, 1), (4, 4, 4, 4), (1, 1, 1, 1)]:
        counted = counter.count(range(4), ScriptedExit(depths))
        expected = [sum(d >= stage for d in depths) for stage in range(1, 5)]
        assert [counted[path] for path in case(name).stages] == expected
    assert set(counter.full.values()) == {4}
    assert counter.count([0, 2], NeverExit()) == dict.fromkeys(counter.full, 2)
    assert len(model.exits) == 3


def test_a_block_that_is_called_again_counts_every_time() -> None:
    counter, _, _ = counter_of("shared_block", 3)
    assert counter.full == {"block": 12}
    assert counter.count(range(3), ScriptedExit((1, 2, 4))) == {"block": 7}


def test_work_behind_the_back_of_the_executor_is_counted() -> None:
    counter, module, _ = counter_of("value_branch", 3)
    policy = ScriptedExit((1, 1, 4))
    honest = counter.count(range(3), policy)
    inner = module.blocks[0].norm
    # The first block's norm now runs for the rows of the third block too.
    handle = module.blocks[2].register_forward_hook(lambda m, a, out: (inner(out), out)[1])
    cheated = counter.count(range(3), policy)
    handle.remove()
    assert cheated["blocks.0"] > honest["blocks.0"]
    assert counter.count(range(3), policy) == honest
    assert not any(m._forward_pre_hooks for m in module.modules())
