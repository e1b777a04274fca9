"""The executor: templates of outputs, heads that follow, gates that come and go."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, TrajectoryError
from exitkit.execution.gate import Gate
from exitkit.execution.patching import found
from exitkit.policies import FixedExit, NeverExit
from tests.backbones import case
from tests.copies import copies


@copies
def made(preset="relative", name="tuple_blocks"):
    backbone = case(name)
    args, _ = backbone.inputs(3)
    return ek.wrap(backbone.make(), preset, example_inputs=args), args


def test_a_run_without_exits_is_the_backbone():
    model, args = made()
    with torch.no_grad():
        want = case("tuple_blocks").make()(*args)
        output, trace = model._executor.run(model.backbone, args, {}, NeverExit(), None)
        early, short = model._executor.run(model.backbone, args, {}, FixedExit(1), None)
    assert type(output) is type(want) and torch.equal(output[0], want[0])
    assert trace.cost == 1.0 and trace.seconds > 0
    assert short.cost < 1 and not torch.allclose(early[0], want[0], atol=1e-4)


def test_heads_follow_a_backbone_that_was_cast():
    model, (image,) = made(name="timm_vit")
    model.backbone.double()
    with torch.no_grad():
        executor = model._executor
        output, _ = executor.run(model.backbone, (image.double(),), {}, FixedExit(1), None)
    assert output.dtype == torch.float64
    assert {p.dtype for p in model.heads.parameters()} == {torch.float64}


def test_release_takes_the_gates_out_once():
    model, args = made()
    backbone, executor = model.backbone, model._executor
    assert any(found(block, Gate) for block in backbone.blocks) and not executor.released
    executor.release()
    assert executor.released and executor.emptied
    assert not any(found(block, Gate) for block in backbone.modules())
    with pytest.raises(AlreadyWrappedError, match="undone by unwrap"):
        executor.release()
    with pytest.raises(AlreadyWrappedError, match="undone by unwrap"):
        executor.run(backbone, args, {}, NeverExit(), None)


def test_carried_exits_have_no_output_on_a_single_input():
    model, args = made("carried")
    with pytest.raises(TrajectoryError, match="no output on a single input"):
        model._executor.all_exits(args, {})
