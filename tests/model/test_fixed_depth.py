"""A fixed depth is a plain network: the bits of `FixedExit`, no gates, and every exporter takes it."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.execution.gate import Gate
from exitkit.policies import FULL, FixedExit, NeverExit
from tests.backbones import CASES, Case, case, prediction
from tests.copies import copies
from tests.tiny_pipelines import case as pipeline

FEW = (
    "uvit",
    "unet",
    "dit",
    "sd3",
    "timm_resnet",
    "folded_frames",
    "inplace_blocks",
    "dict_blocks",
)
PLAIN = [one for one in CASES if one.id != "shared_block"]


@copies
def wrapped(one: Case, preset: str = "relative") -> Any:
    args, kwargs = one.inputs(3)
    model = ek.wrap(one.make(), preset, example_inputs=ek.Inputs(*args, **kwargs))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.exit_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.heads.mark_fitted()
    return model


@torch.no_grad()
def same_bits(one: Case) -> None:
    model, (args, kwargs) = wrapped(one), one.inputs(3)
    seen = []
    for depth in (*range(1, len(model.exits) + 1), FULL):
        model.policy = NeverExit() if depth == FULL else FixedExit(depth)
        fixed, want = model.at(depth), model(*args, **kwargs)
        made = fixed(*args, **kwargs)
        assert type(made) is type(want)
        assert torch.equal(prediction(made), prediction(want)), depth
        seen.append(prediction(made))
        assert not any(isinstance(vars(m).get("forward"), Gate) for m in fixed.modules())
        more, named = one.inputs(5)  # another batch than the example's
        assert torch.equal(prediction(fixed(*more, **named)), prediction(model(*more, **named)))
    assert all(not torch.equal(early, seen[-1]) for early in seen[:-1]), "the control"


@pytest.mark.parametrize("name", FEW)
def test_it_gives_the_bits_of_a_fixed_exit(name: str) -> None:
    same_bits(case(name))


@pytest.mark.slow
@pytest.mark.parametrize("one", PLAIN, ids=lambda c: c.id)
def test_every_network_gives_the_bits_of_a_fixed_exit(one: Case) -> None:
    same_bits(one)


def test_parameters_are_shared_and_the_model_goes_on() -> None:
    one = case("uvit")
    model, (args, kwargs) = wrapped(one), one.inputs(3)
    model.policy = FixedExit(1)
    fixed, before = model.at(1), model(*args, **kwargs)
    known = {id(p) for p in model.parameters()}
    assert all(id(p) in known for p in fixed.parameters())
    assert torch.equal(model(*args, **kwargs), before), "the wrapped model changed"
    twin = copy.deepcopy(fixed)
    backbone = ek.unwrap(model)
    full = backbone(*args, **kwargs)
    assert torch.equal(fixed(*args, **kwargs), before), "unwrap took it along"
    with torch.no_grad():
        next(p for p in model.heads.output[0].parameters()).add_(1)
    assert not torch.equal(fixed(*args, **kwargs), before)
    assert torch.equal(twin(*args, **kwargs), before), "a deep copy is on its own"
    assert torch.equal(backbone(*args, **kwargs), full)


def test_skipped_blocks_do_not_run() -> None:
    one = case("uvit")
    model, (args, kwargs) = wrapped(one), one.inputs(3)
    ran: list[str] = []
    for stage in model.plan.stages:
        block = model.backbone.get_submodule(stage.path)
        inner = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
        inner.register_forward_hook(lambda *_, path=stage.path: ran.append(path))
    model.at(2)(*args, **kwargs)
    assert ran == [stage.path for stage in model.plan.stages[: model.plan.boundaries[1].stage]]


def test_a_denoiser_of_a_pipeline_has_fixed_depths(tmp_path: Path) -> None:
    one = pipeline("sd3")
    pipe = one.make()
    model = one.wrap(pipe, "relative")
    fixed = model.at(1)
    model.policy = FixedExit(1)
    early = one.run(pipe)
    ek.unwrap(pipe)
    full, pipe.transformer.forward = one.run(pipe), fixed.forward
    assert torch.equal(one.run(pipe), early) and not torch.equal(early, full)


@pytest.mark.parametrize("depth", [0, 99, 1.5, "one", True])
def test_depths_that_are_not_there(depth: Any) -> None:
    model = wrapped(case("uvit"))
    with pytest.raises(
        ConfigError, match=r"UViT.at: depth .*(whole number|has \d exits. Take 1 to)"
    ):
        model.at(depth)


def test_exits_that_are_no_network_of_one_call() -> None:
    with pytest.raises(ConfigError, match=r"UViT.at\(1\): .*last full steps left.*'relative'"):
        wrapped(case("uvit"), "carried").at(1)
    shared = wrapped(case("shared_block"))
    with pytest.raises(ConfigError, match=r"calls 'block' several times.*FixedExit"):
        shared.at(1)
    args, kwargs = case("shared_block").inputs(3)
    assert torch.equal(shared.at(FULL)(*args, **kwargs), shared(*args, **kwargs))


# ------------------------------------------------------------------------------------------ exporters


@pytest.fixture(params=["uvit", "unet"])
def exported(request: pytest.FixtureRequest) -> Any:
    one = case(request.param)
    args, kwargs = one.inputs(3)
    fixed = wrapped(one).at(1).eval()
    with torch.no_grad():
        return fixed, args, kwargs, prediction(fixed(*args, **kwargs))


def test_torch_export(exported: Any) -> None:
    fixed, args, kwargs, want = exported
    program = torch.export.export(fixed, args, kwargs)
    torch.testing.assert_close(prediction(program.module()(*args, **kwargs)), want)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of shapes, which hold
def test_torch_jit_trace() -> None:
    for name in ("uvit", "timm_vit"):
        one = case(name)
        args, _ = one.inputs(3)
        fixed = wrapped(one).at(1).eval()
        traced = torch.jit.trace(fixed, args, check_trace=False)
        torch.testing.assert_close(traced(*args), fixed(*args))
        more, _ = one.inputs(5)  # another batch than the traced one
        torch.testing.assert_close(traced(*more), fixed(*more))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uvit", "unet", "dit", "sd3", "flux", "timm_resnet"])
def test_torch_compile_as_one_graph(name: str) -> None:
    one = case(name)
    args, kwargs = one.inputs(3)
    model = wrapped(one)
    torch._dynamo.reset()
    for depth in (1, len(model.exits)):
        fixed = model.at(depth)
        compiled = torch.compile(fixed, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            got, want = (prediction(f(*args, **kwargs)) for f in (compiled, fixed))
        torch.testing.assert_close(got, want)


onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)


def in_onnx(fixed: nn.Module, args: Any, kwargs: Any, file: Path) -> Any:
    """A session of onnxruntime over a network, and the network's names for its inputs."""
    import onnxruntime

    torch.onnx.export(fixed, args, str(file), kwargs=kwargs, dynamo=True)
    session = onnxruntime.InferenceSession(str(file))
    names = [entry.name for entry in session.get_inputs()]

    def run(*given: torch.Tensor) -> torch.Tensor:
        fed = dict(zip(names, [t.numpy() for t in given], strict=True))
        return torch.from_numpy(session.run(None, fed)[0])

    return run


@onnx
def test_onnx(exported: Any, tmp_path: Path) -> None:
    fixed, args, kwargs, want = exported
    made = in_onnx(fixed, args, kwargs, tmp_path / "fixed.onnx")(*args, *kwargs.values())
    torch.testing.assert_close(made, want, atol=1e-4, rtol=1e-4)


def halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 0.5 if tensor.is_floating_point() else tensor


@onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "sd3", "flux", "unet_conditional", "timm_resnet"])
def test_onnx_of_other_networks(name: str, tmp_path: Path) -> None:
    """At the first exit and at full depth, on other values than those it was exported with."""
    one = case(name)
    (args, kwargs), model = one.inputs(3), wrapped(one)
    seen = []
    for depth in (1, FULL):
        fixed = model.at(depth).eval()
        run = in_onnx(fixed, args, kwargs, tmp_path / f"{depth}.onnx")
        first, named = pytree.tree_map_only(torch.Tensor, halved, (args, kwargs))
        with torch.no_grad():
            want = prediction(fixed(*first, **named))
        tensors = [x for x in (*first, *named.values()) if isinstance(x, torch.Tensor)]
        torch.testing.assert_close(run(*tensors), want, atol=1e-4, rtol=1e-4)
        seen.append(want)
    assert not torch.allclose(*seen, atol=1e-3), "the control"
