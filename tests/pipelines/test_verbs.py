"""wrap, inspect and unwrap take networks and pipelines alike, and say the same of both."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, ConfigError
from exitkit.model import ExitModels
from exitkit.pipelines.capture import denoisers, first_calls
from tests.tiny_pipelines import case


def test_one_denoiser_is_a_model_and_several_are_a_mapping() -> None:
    one, both = case("sd3"), case("wan")
    pipe = one.make()
    model = one.wrap(pipe)
    assert isinstance(model, ek.ExitModel) and model.backbone is pipe.transformer
    pipe = both.make()
    models = both.wrap(pipe)
    assert isinstance(models, ExitModels) and tuple(models) == both.components
    assert [m.backbone for m in models.values()] == both.networks(pipe)


def test_a_pipeline_gives_its_network_the_exits_of_the_network_alone() -> None:
    one = case("sd3")
    pipe, bare = one.make(), one.make()
    example = first_calls(bare, denoisers(bare), one.call(1))["transformer"]
    plan = ek.inspect(bare.transformer, example_inputs=example)
    model = one.wrap(pipe, "relative")
    alone = ek.wrap(bare.transformer, "relative", example_inputs=example)
    assert model.plan == alone.plan == plan
    assert model.exits == alone.exits and len(model.exits) > 1
    fewer = ek.wrap(case("sd3").make(), "relative", example_inputs=one.call(1), exits=(1,))
    assert fewer.exits == model.exits[:1], "overrides go through"


@pytest.mark.parametrize("through", ["pipe", "models"])
def test_unwrap_takes_what_wrap_took_or_gave(through: str) -> None:
    one = case("wan")
    pipe = one.make()
    before = one.run(pipe)
    models = one.wrap(pipe)
    with pytest.raises(AssertionError):
        one.assert_bare(pipe)
    # Undone by half already, as an interrupted call leaves it.
    if through == "models":
        ek.unwrap(models["transformer"])
        assert ek.unwrap(models) == dict(zip(one.components, one.networks(pipe), strict=True))
        with pytest.raises(AlreadyWrappedError):
            ek.unwrap(models)
    else:
        assert ek.unwrap(pipe) is pipe
    one.assert_bare(pipe)
    assert torch.equal(one.run(pipe), before)


def test_a_pipeline_without_exits_has_none_to_undo() -> None:
    with pytest.raises(ConfigError):
        ek.unwrap(case("sd3").make())
