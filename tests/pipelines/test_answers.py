"""Who answers a denoiser's calls, and predictions that are edited on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.pipelines.answers import Answers
from exitkit.policies import NeverExit
from tests.tiny_pipelines import STEPS, PipelineCase, case

edited_cases = pytest.mark.parametrize(
    "one",
    [
        case("sd"),
        case("wan"),
        *(pytest.param(case(n), marks=pytest.mark.slow) for n in ("dit", "flux")),
    ],
    ids=lambda c: c.id,
)


class Scaled(nn.Module):
    """The denoiser in whose place it runs, with a larger answer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        return (1.5 * out[0], *out[1:])


@edited_cases
def test_an_edit_changes_one_step_in_every_branch(one: PipelineCase) -> None:
    """Against hooks on the bare networks that scale their answers in calls of that step."""
    bare, pipe, at = one.make(), one.make(), 1
    wrapped = one.wrap(pipe)
    told: list[tuple[int, list[int], int]] = []

    def edit(step: int, seeds: Tensor, prediction: Tensor) -> Tensor:
        told.append((step, seeds.tolist(), len(prediction)))
        return 1.5 * prediction if step == at else prediction

    made = one.sampler(pipe, rows=2).run(wrapped, [0, 1], edit=edit).samples
    copies = one.copies * one.calls
    assert told == [(s, [0, 1], 2) for s in range(STEPS) for _ in range(copies)]
    calls = [0]

    def hook(_: Any, __: Any, output: Any) -> Any:
        step, calls[0] = calls[0] // one.calls, calls[0] + 1
        if step != at:
            return None
        first = output[0] if isinstance(output, tuple) else output.sample
        return (1.5 * first,) if isinstance(output, tuple) else type(output)(sample=1.5 * first)

    for network in one.networks(bare):
        network.register_forward_hook(hook)
    expected = one.sampler(bare).run(one.bare(bare), [0]).samples
    scale = float(expected.abs().max())
    torch.testing.assert_close(made[:1], expected, rtol=1e-4, atol=1e-4 * scale)


def test_another_network_runs_in_the_place_of_the_denoiser() -> None:
    one = case("sd3")
    pipe, other = one.make(), one.make()
    larger = Scaled(other.transformer)
    made = one.sampler(pipe).run(larger, [2]).samples
    other.transformer = larger
    larger.config, larger.dtype = other.components["transformer"].inner.config, torch.float32
    expected = one.sampler(one.make()).run(larger, [2]).samples
    assert torch.equal(made, expected)
    assert not torch.equal(made, one.by_hand(one.make(), 2))
    assert "forward" not in vars(pipe.transformer)


def test_bare_networks_cannot_be_edited() -> None:
    one = case("sd3")
    pipe = one.make()
    with pytest.raises(ConfigError, match="not wrapped cannot be edited"):
        one.sampler(pipe).run(pipe.transformer, [0], edit=lambda step, seeds, given: given)


def test_an_exchanged_component_is_told() -> None:
    one = case("wan")
    pipe = one.make()
    names = nn.ModuleDict({"transformer_3": pipe.transformer_2})
    assert Answers(pipe, names, torch.tensor([0]))  # the component itself, by another name
    stranger = nn.ModuleDict({"transformer_3": nn.Identity()})
    with pytest.raises(
        ConfigError, match="no denoiser 'transformer_3'.*transformer, transformer_2"
    ):
        Answers(pipe, stranger, torch.tensor([0]))


def test_a_suspended_model_is_bare() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = NeverExit()
    expected = ek.generate(model, one.sampler(pipe)).samples
    model.policy = ek.policies.Interval(2)
    with model.suspended():
        sample = ek.generate(model, one.sampler(pipe))
    assert torch.equal(sample.samples, expected) and sample.trace is None
