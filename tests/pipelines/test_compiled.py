"""Denoisers under `torch.compile` in a pipeline: before wrapping, after it, and on the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError
from exitkit.policies import FixedExit, NeverExit
from tests.modes.test_compiled import Counting
from tests.tiny_pipelines import PipelineCase, case, models

pytestmark = [  # PyTorch's own, of its tracing
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def compile_all(one: PipelineCase, pipe: Any, backend: Counting) -> list[nn.Module]:
    """What users write: `pipe.unet = torch.compile(pipe.unet)`."""
    for name in one.components:
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend=backend))
    return one.networks(pipe)


def in_place(one: PipelineCase, pipe: Any, backend: Counting) -> list[nn.Module]:
    """The other way: `pipe.unet.compile()`."""
    for network in one.networks(pipe):
        network.compile(backend=backend)
    return one.networks(pipe)


HOW = {"module": compile_all, "in place": in_place}
every = pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dit", "module"),
        *(
            pytest.param(name, how, marks=pytest.mark.slow)
            for name, how in (
                *((name, "module") for name in ("sd", "sd3", "wan")),
                ("sd3", "in place"),
            )
        ),
    ],
)


@every
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_pipeline_leaves_early(name: str, how: str, when: str) -> None:
    one, backend = case(name), Counting()
    plain, pipe = one.make(), one.make()
    bare = one.run(plain)
    torch.manual_seed(0)
    reference = one.wrap(plain, "relative")
    given = HOW[how](one, pipe, backend) if when == "before" else []
    torch.manual_seed(0)
    wrapped = one.wrap(pipe, "relative")
    given = given or HOW[how](one, pipe, backend)
    assert [type(m.backbone) for m in models(wrapped)] == [
        type(m.backbone) for m in models(reference)
    ]
    assert torch.equal(one.run(pipe), bare), "a policy that never fires"
    for each in (reference, wrapped):
        each.policy = FixedExit(1)
    early = one.run(plain)
    assert not torch.equal(early, bare), "the control: nobody left early"
    one.run(pipe)  # the first call looks at shapes, which costs
    assert torch.equal(one.run(plain), early) and torch.equal(one.run(pipe), early)
    assert wrapped.trace.cost == reference.trace.cost < 1
    assert backend.graphs == 0, "our Python was compiled"
    with wrapped.suspended():
        assert torch.equal(one.run(pipe), bare) and backend.graphs > 0
    before = backend.graphs
    assert torch.equal(one.run(pipe), early)
    ek.unwrap(pipe)
    assert all(a is b for a, b in zip(one.networks(pipe), given, strict=True))
    assert torch.equal(one.run(pipe), bare) and backend.graphs >= before > 0


def test_every_verb_takes_a_compiled_pipeline(tmp_path: Path) -> None:
    one = case("dit")
    pipe, plain = one.make(), one.make()
    (compiled,) = compile_all(one, pipe, Counting())
    expected = one.sampler(plain).run(plain.transformer, [3]).samples
    model = one.wrap(pipe)
    sampler = one.sampler(pipe, rows=2)
    assert torch.equal(ek.generate(model, one.sampler(pipe), [3]).samples, expected)
    ek.fit(model, sampler, steps=2, progress=False)
    model.policy = FixedExit(1)
    early = one.run(pipe)
    assert not torch.equal(early, one.run(plain)), "the control: nobody left early"
    model.save_pretrained(tmp_path / "exits")
    # Compiled or not, there and here: the weights are the same.
    ek.load(plain, tmp_path / "exits")
    assert torch.equal(one.run(plain), early)
    assert ek.unwrap(model) is compiled and pipe.transformer is compiled
    loaded = ek.load(pipe, tmp_path / "exits")
    assert torch.equal(one.run(pipe), early)
    assert ek.unwrap(loaded) is compiled
    ek.unwrap(plain)
    one.assert_bare(plain)


def test_a_compiled_network_is_loaded(tmp_path: Path) -> None:
    one = case("dit")
    network = one.make().transformer
    model = ek.wrap(one.make(), "relative", example_inputs=one.call(1))
    model.save_pretrained(tmp_path)
    compiled = torch.compile(network, backend="eager")
    loaded = ek.load(compiled, tmp_path)
    assert loaded.backbone is network and ek.unwrap(loaded) is compiled


def test_compiled_components_are_named_and_wrapped_once() -> None:
    one = case("dit")
    pipe = one.make()
    compile_all(one, pipe, Counting())
    named = {"components": ("transformer",)}
    found = ek.enable_early_exit(pipe, "relative", example_inputs=one.call(1), **named)
    assert found["transformer"].backbone is pipe.transformer._orig_mod
    with pytest.raises(AlreadyWrappedError):
        one.wrap(pipe)


def test_exchanging_a_compiled_denoiser_is_told() -> None:
    one = case("dit")
    pipe, other = one.make(), one.make()
    model = one.wrap(pipe)
    compile_all(one, pipe, Counting())
    model.policy = NeverExit()
    one.run(pipe)  # warnings are errors here: compiled is not exchanged
    compile_all(one, other, Counting())
    pipe.transformer = other.transformer
    with pytest.warns(UserWarning, match="new DiTTransformer2DModel has no exits"):
        one.run(pipe)
