"""What training looks at: hidden states and outputs of all exits, against hooks on unmodified networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.execution.recording import frozen
from tests.backbones import CASES, Case, case, hidden_in, prediction
from tests.execution.test_forward import each, wrap

SAME_SHAPE = [c for c in CASES if c.lands]


@contextmanager
def returned(net: nn.Module, stages: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """Hidden states that blocks return, by hooks of torch."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for path in dict.fromkeys(stages):
            hook = net.get_submodule(path).register_forward_hook(
                lambda module, args, output: found.append(hidden_in(output).clone())
            )
            stack.callback(hook.remove)
        yield found


@each(*(c.id for c in SAME_SHAPE), "unet", "timm_resnet")
def test_recorded_hidden_states_are_what_the_blocks_returned(backbone: Case) -> None:
    reference, wrapped = backbone.make(), wrap(backbone)
    args, kwargs = backbone.inputs(3, seed=2)
    with torch.no_grad(), returned(reference, backbone.stages) as found:
        bare = reference(*args, **kwargs)
        recording = wrapped.record(*args, **kwargs)
    assert torch.equal(prediction(recording.output), prediction(bare))
    assert torch.equal(recording.prediction, wrapped.prediction_of(recording.output))
    states = {wrapped.plan.num_stages: recording.final}
    for e, boundary in zip(wrapped.exits, wrapped.heads.boundaries, strict=True):
        assert boundary.path == e.path
        states[boundary.stage] = recording.hidden[e.index]
        if e.index in recording.landing:
            assert backbone.lands and torch.equal(recording.landing[e.index], recording.final)
    for stage, mine in states.items():
        theirs = found[stage - 1]
        assert mine.numel() == theirs.numel()
        assert len(mine) == 3
        assert torch.equal(mine.flatten().sort().values, theirs.flatten().sort().values)
    assert not torch.equal(states[1], states[2]), "the control: exits see one and the same state"


@each("uvit", "unet", "encoder_sequence_first", "folded_frames")
def test_rows_of_a_recording_are_those_rows_alone(backbone: Case) -> None:
    wrapped = wrap(backbone)
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        together = wrapped.record(*args, **kwargs)
        for row in range(3):
            args, kwargs = backbone.rows([row])
            alone = wrapped.record(*args, **kwargs)
            for k, hidden in together.hidden.items():
                torch.testing.assert_close(hidden[row : row + 1], alone.hidden[k])
            torch.testing.assert_close(together.final[row : row + 1], alone.final)
            torch.testing.assert_close(together.noisy[row : row + 1], alone.noisy)


def test_states_that_are_changed_in_place_later_are_kept_as_they_were() -> None:
    backbone = case("inplace_blocks")
    wrapped = wrap(backbone)
    args, _ = backbone.inputs(2)
    reference = backbone.make()
    with torch.no_grad(), returned(reference, backbone.stages) as found:
        reference(*args)
        kept = wrapped.record(*args).hidden
    for k, hidden in kept.items():
        assert torch.equal(hidden, found[k - 1])


@each("uvit", "shared_block", "dict_blocks")
@pytest.mark.parametrize("seed", [0, 1])
def test_all_exits_are_the_tail_of_each_hidden_state(backbone: Case, seed: int) -> None:
    """Untrained `tail` heads hand on what they see: by a hook that puts it in the last block's place."""
    wrapped, net = wrap(backbone), backbone.make()
    args, kwargs = backbone.inputs(3, seed)
    last = backbone.stages[-1]
    with torch.no_grad():
        out = wrapped(*args, **kwargs, output_exits=True)
        with returned(net, backbone.stages) as states:
            want = prediction(net(*args, **kwargs))
        assert torch.equal(out.prediction, want)
        for k, mine in enumerate(out.exits, 1):
            calls: list[int] = []

            def put(
                module: nn.Module, inputs: Any, output: Any, k: int = k, calls: list[int] = calls
            ) -> Any:
                calls.append(1)
                if len(calls) < backbone.stages.count(last):
                    return None
                return (
                    {**output, "hidden": states[k - 1]}
                    if isinstance(output, dict)
                    else states[k - 1]
                )

            handle = net.get_submodule(last).register_forward_hook(put)
            naive = prediction(net(*args, **kwargs))
            handle.remove()
            torch.testing.assert_close(mine, naive, rtol=1e-4, atol=2e-5)
            assert not torch.allclose(mine, want, atol=2e-4)


# -------------------------------------------------------------------------------- gradients


def losses(out: Any) -> Tensor:
    return sum(e.square().mean() for e in out.exits) + sum(u.mean() for u in out.uncertainty)


@pytest.mark.parametrize("trains", [False, True])
def test_gradients_reach_the_backbone_where_it_is_trained(trains: bool) -> None:
    backbone = case("uvit")
    wrapped = wrap(backbone, "relative", loss=ek.LossConfig(train_backbone=trains))
    wanted = {name: p.requires_grad for name, p in wrapped.named_parameters()}
    losses(wrapped(*backbone.inputs(2)[0], output_exits=True)).backward()
    grads = [p.grad for p in wrapped.backbone.parameters()]
    assert any(g is not None and bool(g.any()) for g in grads) is trains
    assert any(p.grad is not None and bool(p.grad.any()) for p in wrapped.exit_parameters())
    assert wanted == {name: p.requires_grad for name, p in wrapped.named_parameters()}


@pytest.mark.parametrize("detached", [False, True])
def test_uncertainty_is_kept_from_the_backbone_where_asked(detached: bool) -> None:
    backbone = case("uvit")
    loss = ek.LossConfig(train_backbone=True, detach_hidden=detached)
    wrapped = wrap(backbone, "relative", loss=loss)
    for parameter in wrapped.exit_parameters():  # zero weights would let nothing through
        parameter.data += 0.1
    out = wrapped(*backbone.inputs(2)[0], output_exits=True)
    sum(u.mean() for u in out.uncertainty).backward()
    reached = any(p.grad is not None and bool(p.grad.any()) for p in wrapped.backbone.parameters())
    assert reached is not detached


def test_frozen_parameters_stay_frozen_behind_it() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].weight.requires_grad_(False)
    x = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(ZeroDivisionError), frozen(net, True):
        net(x).sum().backward()
        assert x.grad is not None and net[1].weight.grad is None
        raise ZeroDivisionError
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    with frozen(net, False):
        assert net[1].weight.requires_grad


# ----------------------------------------------------------------------------------- replay


@each("uvit", "tuple_blocks", "folded_frames")
def test_several_states_in_one_pass_are_each_alone(backbone: Case) -> None:
    wrapped = wrap(backbone)
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        final = wrapped.record(*args, **kwargs).final
        states = [final, 2 * final, torch.zeros_like(final)]
        together = wrapped.replay(args, kwargs, states)
        for state, mine in zip(states, together, strict=True):
            (alone,) = wrapped.replay(args, kwargs, [state])
            torch.testing.assert_close(mine, alone, rtol=1e-4, atol=2e-5)
        assert not torch.allclose(together[0], together[2], atol=1e-3)
        bare = wrapped.prediction_of(wrapped.backbone(*args, **kwargs))
    torch.testing.assert_close(together[0], bare, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("exit", [1, 2])
def test_states_put_where_an_exit_lands_run_what_follows(exit: int) -> None:
    """Of a U-Net, whose carried exits resume on the way up: the states of the network itself there."""
    backbone = case("unet")
    wrapped = wrap(backbone, "carried", exits=("down_blocks.*",))
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        recording = wrapped.record(*args, **kwargs)
        (same,) = wrapped.replay(args, kwargs, [recording.landing[exit]], exit)
        (other,) = wrapped.replay(args, kwargs, [0 * recording.landing[exit]], exit)
    torch.testing.assert_close(same, recording.prediction, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(other, same, atol=1e-3)
