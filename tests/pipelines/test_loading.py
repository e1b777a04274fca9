"""Saved exits come back to a network or a pipeline, ready to run, and do what they did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, CheckpointError, ConfigError
from exitkit.policies import Calibration, FixedExit, Interval, Policy
from tests.backbones import CASES as BACKBONES
from tests.backbones import Case, prediction
from tests.backbones import case as backbone
from tests.tiny_pipelines import CASES, PipelineCase, case, models

ROOT = Path(__file__).parents[2]
Kept = Callable[[str, Path], Policy]
FEW = [case(name) for name in ("sd", "sd3", "wan")]
few = pytest.mark.parametrize(
    "one", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.id == "sd")) for c in FEW]
)


def used(one: PipelineCase, pipe: Any, **more: Any) -> Any:
    """A wrapped pipeline whose exits have learned something and are in use."""
    wrapped = one.wrap(pipe, "relative", **more)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model in models(wrapped):
            for parameter in model.exit_parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            model.heads.mark_fitted()
    wrapped.policy = Interval(2, 1)
    return wrapped


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Copies the folder with the exits of a pipeline to a place; made once for each pipeline."""
    made: dict[str, tuple[Path, Policy]] = {}

    def copy(name: str, target: Path) -> Policy:
        if name not in made:
            wrapped, folder = used(case(name), case(name).make()), tmp_path_factory.mktemp(name)
            wrapped.save_pretrained(folder)
            made[name] = folder, wrapped.policy
        folder, policy = made[name]
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return policy

    return copy


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@few
def test_a_pipeline_gets_its_exits_back_and_runs_the_same_bits(
    one: PipelineCase, tmp_path: Path
) -> None:
    pipe, fresh = one.make(), one.make()
    bare = one.run(fresh)
    saved = used(one, pipe)
    for model in models(saved):
        model.calibrations.append(Calibration(saved.policy, 0.5, 0.1, budget=0.5))
    expected, trace = one.run(pipe), saved.trace
    assert not torch.equal(expected, bare), "the control: nobody left early"
    saved.save_pretrained(tmp_path / "exits")
    before = torch.get_rng_state()
    loaded = ek.load(fresh, tmp_path / "exits")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(saved) and loaded.policy == saved.policy
    for mine, theirs in zip(models(loaded), models(saved), strict=True):
        assert mine.plan == theirs.plan and mine.exits == theirs.exits
        assert mine.calibration == theirs.calibration and mine.fitted == theirs.fitted
    assert torch.equal(one.run(fresh), expected)
    assert torch.equal(loaded.trace.depth, trace.depth) and loaded.trace.cost == trace.cost
    # Saved once more, it is the same folder.
    loaded.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "exits")
    ek.unwrap(fresh)
    one.assert_bare(fresh)
    assert torch.equal(one.run(fresh), bare)


def test_each_denoiser_has_a_folder_of_its_name(kept: Kept, tmp_path: Path) -> None:
    one = case("wan")
    policy = kept("wan", tmp_path)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors")}
    assert names == {f"{name}/exits.safetensors" for name in one.components}
    # Experts are not exchanged, though they are built alike.
    one_way = ek.load(one.make(), tmp_path)
    assert [m.policy for m in one_way.values()] == [policy] * 2
    with pytest.raises(
        CheckpointError, match=r"transformer and transformer_2.*ek.load\(pipe, path\)"
    ):
        ek.load(one.make().transformer, tmp_path)
    assert len(ek.load(one.make().transformer_2, tmp_path / "transformer_2").exits) > 0
    with pytest.raises(
        CheckpointError, match=r"has no denoiser transformer or transformer_2.*unet"
    ):
        ek.load(case("sd").make(), tmp_path)


def test_exits_of_one_of_two_denoisers_find_theirs(tmp_path: Path) -> None:
    one = case("wan")
    for name in one.components:
        found = ek.enable_early_exit(
            one.make(), "relative", example_inputs=one.call(1), components=(name,)
        )
        found[name].save_pretrained(tmp_path / name)
        pipe = one.make()
        assert ek.load(pipe, tmp_path / name).backbone is getattr(pipe, name)


def test_refusals_leave_the_pipeline_as_it_was(kept: Kept, tmp_path: Path) -> None:
    one = case("wan")
    kept("wan", tmp_path / "exits")
    pipe = one.make()
    with torch.no_grad():  # the second one: the first is wrapped by then
        next(pipe.transformer_2.parameters()).add_(1)
    with pytest.raises(CheckpointError, match="other weights"):
        ek.load(pipe, tmp_path / "exits")
    one.assert_bare(pipe)
    assert len(ek.load(pipe, tmp_path / "exits", check_weights=False)) == 2
    with pytest.raises(AlreadyWrappedError, match=r"transformer of this WanPipeline is wrapped"):
        ek.load(pipe, tmp_path / "exits")
    shutil.rmtree(tmp_path / "exits" / "transformer_2")
    fresh = one.make()
    with pytest.raises(CheckpointError, match=r"transformer_2/exitkit.json is not there"):
        ek.load(fresh, tmp_path / "exits")
    one.assert_bare(fresh)
    with pytest.raises((CheckpointError, ConfigError), match="expected a network or a diffusers"):
        ek.load(3, tmp_path / "exits")


def test_a_lora_is_told_when_exits_are_loaded(kept: Kept, tmp_path: Path) -> None:
    one = case("sd3")
    kept("sd3", tmp_path / "bare")
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    pipe = one.make()
    inject_adapter_in_model(config, pipe.transformer, adapter_name="style")
    with pytest.warns(
        UserWarning, match=r"has the LoRA 'style' loaded.*fitted with no LoRA"
    ) as caught:
        ek.load(pipe, tmp_path / "bare")
    assert len(caught) == 1
    assert bool(one.run(pipe).isfinite().all())
    # The other way round, and alike (warnings are errors here).
    ek.unwrap(pipe)
    used(one, pipe).save_pretrained(tmp_path / "styled")
    with pytest.warns(UserWarning, match=r"has no LoRA loaded.*fitted with the LoRA 'style'"):
        ek.load(one.make(), tmp_path / "styled")
    ek.unwrap(pipe)
    ek.load(pipe, tmp_path / "styled")


def test_example_inputs_of_a_pipeline_are_its_keywords(kept: Kept, tmp_path: Path) -> None:
    one = case("sd3")
    kept("sd3", tmp_path)
    file = tmp_path / "exitkit.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"example": None}))
    pipe = one.make()
    with pytest.raises(CheckpointError, match=r"exitkit.json does not say.*example_inputs="):
        ek.load(pipe, tmp_path)
    one.assert_bare(pipe)
    loaded = ek.load(pipe, tmp_path, example_inputs=one.call(1))
    assert (
        loaded.example is not None
        and loaded.example["kwargs"].keys() == told["example"]["kwargs"].keys()
    )


def test_networks_of_another_dtype_are_probed_in_theirs(tmp_path: Path) -> None:
    one = backbone("uvit")
    args, _ = one.inputs(2)
    ek.wrap(one.make(), "relative", example_inputs=args).save_pretrained(tmp_path)
    double = ek.load(one.make().double(), tmp_path, check_weights=False)
    leaf = next(leaf for leaf in double.plan.inputs if leaf.path == double.plan.noisy)
    assert leaf.dtype == "float64"
    assert bool(double(args[0].double(), args[1]).isfinite().all())


def same(one: Case, folder: Path) -> None:
    args, kwargs = one.inputs(3)
    model = ek.wrap(one.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))
    with torch.no_grad():
        for parameter in model.exit_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.heads.mark_fitted()
    model.policy = FixedExit(1)
    model.save_pretrained(folder)
    loaded = ek.load(one.make(), folder)
    assert loaded.plan == model.plan and loaded.policy == model.policy
    with torch.no_grad():
        assert torch.equal(prediction(loaded(*args, **kwargs)), prediction(model(*args, **kwargs)))


@pytest.mark.parametrize("name", ["dit", "unet", "timm_vit", "encoder_sequence_first"])
def test_networks_need_no_example_inputs(name: str, tmp_path: Path) -> None:
    same(backbone(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("one", BACKBONES, ids=lambda c: c.id)
def test_no_network_needs_example_inputs(one: Case, tmp_path: Path) -> None:
    same(one, tmp_path)


LOADING = """
    import sys
    import torch
    import exitkit as ek
    from tests.tiny_pipelines import case

    for name in sys.argv[2:]:
        one = case(name)
        pipe = one.make()
        ek.load(pipe, f"{sys.argv[1]}/{name}")
        torch.save(one.run(pipe), f"{sys.argv[1]}/{name}.pt")
"""


@pytest.mark.slow
def test_a_fresh_process_runs_the_same_bits(tmp_path: Path) -> None:
    expected = {}
    for one in CASES:
        pipe = one.make()
        used(one, pipe).save_pretrained(tmp_path / one.id)
        expected[one.id] = one.run(pipe)
    script = [sys.executable, "-c", textwrap.dedent(LOADING), tmp_path, *expected]
    threads = str(torch.get_num_threads())  # another number may round otherwise
    subprocess.run(script, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads})
    for name, samples in expected.items():
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), samples), name
