"""Which networks of a pipeline denoise, and what they are called with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exitkit.errors import ConfigError, TracingError
from exitkit.pipelines.capture import denoisers, first_calls
from tests.tiny_pipelines import CASES, PipelineCase, case


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.id)
def test_denoisers_are_found(one: PipelineCase) -> None:
    pipe = one.make()
    assert denoisers(pipe) == dict(zip(one.components, one.networks(pipe), strict=True))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_arguments_are_those_of_a_plain_run(name: str) -> None:
    one = case(name)
    pipe = one.make()
    seen: dict[str, list[tuple[Any, Any]]] = {part: [] for part in one.components}
    handles = [
        getattr(pipe, part).register_forward_pre_hook(
            lambda m, args, kwargs, part=part: seen[part].append((args, kwargs)), with_kwargs=True
        )
        for part in one.components
    ]
    generator = torch.Generator().manual_seed(3)
    pipe(**one.call(1), generator=generator)
    for handle in handles:
        handle.remove()
    counts = {part: len(calls) for part, calls in seen.items()}
    state = torch.random.get_rng_state()
    found = first_calls(
        pipe, denoisers(pipe), {**one.call(1), "generator": torch.Generator().manual_seed(3)}
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(found) == list(one.components) and min(counts.values()) > 1
    for part, inputs in found.items():
        args, kwargs = seen[part][0]
        assert len(args) == len(inputs.args) and kwargs.keys() == inputs.kwargs.keys()
        for mine, theirs in zip(
            [*inputs.args, *inputs.kwargs.values()], [*args, *kwargs.values()], strict=True
        ):
            same = torch.equal(mine, theirs) if torch.is_tensor(mine) else mine == theirs
            assert same or mine is theirs
    one.assert_bare(pipe)


def test_the_run_ends_with_the_first_call() -> None:
    one, calls = case("sd3"), []
    pipe = one.make()
    pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    first_calls(pipe, denoisers(pipe), one.call(1))
    assert calls == [], "the network itself need not run"


def test_a_network_that_is_never_called_is_named() -> None:
    one = case("sd3")
    pipe = one.make()
    with pytest.raises(TracingError, match="without calling 'idle'"):
        first_calls(pipe, {"idle": torch.nn.Identity()}, one.call(1))
    assert not pipe.transformer._forward_pre_hooks


def test_no_denoiser() -> None:
    one = case("sd3")
    pipe = one.make()
    pipe.transformer = None
    with pytest.raises(ConfigError, match=r"none of its networks.*components="):
        one.wrap(pipe)
    pipe.vae = None  # now there is no network at all
    with pytest.raises(ConfigError):
        one.wrap(pipe)
