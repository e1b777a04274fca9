"""Cosmos 3: one packed sequence of text and video, whose whole calls leave early."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.policies import FixedExit, NeverExit
from exitkit.testing import check_adapter, check_backbone
from exitkit.training import Example
from exitkit_adapters import ADAPTERS
from exitkit_adapters.cosmos3 import COSMOS3
from tests.zoo import specimens
from tests.zoo.diffusers_video_c import cosmos3_inputs

SPECIMEN = specimens()["diffusers.Cosmos3OmniTransformer"]
OTHER_LENGTH = (8, (2, 3, 5))  # words, and a grid of patches, unlike the example's


def cut(model: nn.Module, depth: int) -> nn.Module:
    """The model with its first layers alone, made without exitkit: what an untrained exit gives."""
    short = copy.deepcopy(model)
    short.layers = short.layers[:depth]
    return short


def layers_run(model: nn.Module, call: Callable[[], Any]) -> tuple[Any, Counter[int]]:
    """What a call returns, and how often each layer computed anything in it."""
    seen: Counter[int] = Counter()
    handles = [
        layer.self_attn.register_forward_hook(lambda *_, i=i: seen.update([i]))
        for i, layer in enumerate(model.layers)
    ]
    out = call()
    for handle in handles:
        handle.remove()
    return out, seen


def arguments(x: Tensor, t: Tensor, conditions: dict[str, Any]) -> ek.Inputs:
    return ek.Inputs(vision_tokens=[x], vision_timesteps=t.expand(48), **conditions)


def conditions(words: int = 5) -> dict[str, Any]:
    given = cosmos3_inputs(words).kwargs
    return {k: v for k, v in given.items() if k not in ("vision_tokens", "vision_timesteps")}


@pytest.mark.parametrize(
    "preset",
    # Heads that are learned and what resumes; the article's heads are of the first kind.
    [
        "relative",
        "carried",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("paper", "official")),
    ],
)
def test_every_promise_is_kept_without_naming_a_path(preset: str) -> None:
    check_backbone(SPECIMEN.make(), SPECIMEN.inputs(1), config=preset)


def test_the_adapter_is_known_and_holds() -> None:
    assert COSMOS3 in ADAPTERS and "cosmos3" in ek.list_adapters()
    check_adapter(COSMOS3, SPECIMEN.make(), SPECIMEN.inputs(1))


def test_exits_look_at_what_is_generated() -> None:
    plan = ek.inspect(SPECIMEN.make(), example_inputs=SPECIMEN.inputs(1))
    assert not plan.batched and plan.mechanism == "tail"
    assert "one packed sequence: exits per call" in plan.views
    assert [s.calls[0].hidden_in for s in plan.stages] == ["gen_seq"] * 3
    assert {s.calls[0].hidden_out for s in plan.stages} == {"[1]"}
    assert (plan.noisy, plan.timestep) == ("vision_tokens[0]", "vision_timesteps")
    assert {b.hidden.shape for b in plan.boundaries} == {(48, 24)}


@pytest.mark.parametrize("length", [(5, (3, 4, 4)), OTHER_LENGTH])
def test_an_exit_is_the_model_with_fewer_layers(length: tuple[Any, ...]) -> None:
    backbone, given = SPECIMEN.make(), cosmos3_inputs(*length)
    model = ek.wrap(copy.deepcopy(backbone), example_inputs=SPECIMEN.inputs(1))
    wanted = [cut(backbone, d)(**given.kwargs).sample[0] for d in (1, 2, 3)]
    assert (
        float((wanted[0] - wanted[1]).abs().max()) > 1e-3
    )  # the control: depths can be told apart
    for depth in (1, 2):
        model.policy = FixedExit(depth)
        out, ran = layers_run(model.backbone, lambda: model(**given.kwargs))
        assert ran == Counter(range(depth))
        torch.testing.assert_close(out.sample[0], wanted[depth - 1])
        assert model.trace.depth.tolist() == [[depth]] and model.trace.cost < 1
    model.policy = NeverExit()
    assert torch.equal(model(**given.kwargs).sample[0], wanted[2])


def test_a_tuple_and_two_videos() -> None:
    backbone, given = SPECIMEN.make(), cosmos3_inputs().kwargs
    video = torch.arange(5, 101)
    given |= {
        "vision_tokens": [torch.randn(1, 4, 3, 8, 8) for _ in range(2)],
        "vision_token_shapes": [(3, 4, 4)] * 2,
        "vision_noisy_frame_indexes": [torch.arange(3)] * 2,
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": torch.full((96,), 500),
        "position_ids": torch.arange(101).expand(3, 101).float(),
        "sequence_length": 101,
        "return_dict": False,
    }
    model = ek.wrap(copy.deepcopy(backbone), example_inputs=SPECIMEN.inputs(1))
    model.policy = FixedExit(1)
    torch.testing.assert_close(model(**given), cut(backbone, 1)(**given))


def test_guidance_branches_of_different_length_carry_apart() -> None:
    model = ek.wrap(SPECIMEN.make(), "carried", example_inputs=SPECIMEN.inputs(1))
    model.heads.mark_fitted()
    prompts, x = [conditions(5), conditions(9)], torch.randn(1, 4, 3, 8, 8)

    def step(t: int) -> list[Tensor]:
        ts = torch.tensor([t])
        calls = [arguments(x * t / 900, ts, c) for c in prompts]
        return [model(**call.kwargs).sample[0] for call in calls]

    def alone(prompt: int) -> Tensor:
        with model.trajectory():
            for t, policy in ((900, NeverExit()), (800, NeverExit()), (700, FixedExit(1))):
                model.policy = policy
                call = arguments(x * t / 900, torch.tensor([t]), prompts[prompt])
                out = model(**call.kwargs).sample[0]
        return out

    with model.trajectory():
        model.policy = NeverExit()
        step(900)
        step(800)
        model.policy = FixedExit(1)
        both, ran = layers_run(model.backbone, lambda: step(700))
    assert ran == {0: 2} and model.trace.depth.tolist()[-2:] == [[1], [1]]
    assert float((both[0] - both[1]).abs().max()) > 1e-3
    for branch in (0, 1):
        torch.testing.assert_close(both[branch], alone(branch))


@pytest.mark.parametrize("preset", ["carried", "relative"])
def test_exits_are_fitted_on_its_own_trajectories(preset: str) -> None:
    model = ek.wrap(SPECIMEN.make(), preset, example_inputs=SPECIMEN.inputs(1))

    def loop(network: Callable[..., Any], seeds: Tensor, steps: int) -> Tensor:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(int(seeds)))
        for t in scheduler.timesteps:
            call = arguments(x, t[None], conditions())
            predicted = model.prediction_of(network(*call.args, **call.kwargs))[0]
            x = scheduler.step(predicted, t, x).prev_sample
        return x

    rollouts = ek.Rollouts(model, ek.LoopSampler(loop, steps=6, batch_size=1), seeds=2)
    losses: list[float] = []
    ek.fit(
        model,
        rollouts,
        steps=12,
        optimizer=ek.Optimizer(lr=1e-3, warmup=1),
        checkpoints=ek.Checkpoints(log_every=1),
        ema=None,
        progress=False,
        callback=lambda record: losses.append(record["layers"]),
    )
    assert len(losses) == 12 and sum(losses[-4:]) < sum(losses[:4])


def test_examples_fit_it_too_and_rows_are_refused() -> None:
    whole = SPECIMEN.make().requires_grad_(True)  # as the preset wants it: specimens are frozen
    model = ek.wrap(whole, "paper", example_inputs=SPECIMEN.inputs(1))
    data = [Example((), cosmos3_inputs().kwargs, torch.randn(1, 4, 3, 8, 8)) for _ in range(2)]
    assert ek.fit(model, data, steps=2, progress=False).steps == 2
    with pytest.raises(ConfigError, match="one packed sequence a call, and a task draws batches"):
        ek.fit(model, [torch.randn(2, 4, 3, 8, 8)], ek.tasks.Noise(DDIMScheduler()), steps=1)
    with pytest.raises(ConfigError, match="no rows to stack; the sampler has batch_size=64"):
        ek.Rollouts(model, ek.Sampler(DDIMScheduler(), (4, 3, 8, 8)))
