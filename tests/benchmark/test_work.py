"""Fit, calibrate, generate: what each leaves for the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import exitkit as ek
from exitkit.benchmark.targets import WorkSettings, load_target
from exitkit.benchmark.work import calibrate_target, fit_target, generate_target
from exitkit.errors import CheckpointError, ConfigError
from tests.tiny_pipelines import case

SUITE = "tests.tiny_suites:suite"
DIT = "tests.tiny_pipelines:tiny_dit"


def settings(**more: object) -> WorkSettings:
    told = {"preset": "relative", "fit": {"steps": 2, "batch_size": 4}, "calibrate": {"seeds": 2}}
    return WorkSettings.model_validate({**told, **more})


def pipe_settings() -> WorkSettings:
    call = {"num_inference_steps": 3, "guidance_scale": 1.0}
    return settings(calls=[{"class_labels": [1]}, {"class_labels": [2]}], call=call)


@pytest.mark.parametrize("address", [SUITE, DIT])
def test_the_story(address: str, tmp_path: Path) -> None:
    work = settings() if address == SUITE else pipe_settings()
    exits = tmp_path / "exits"
    told = fit_target(load_target(address, work), work, exits)
    assert told["exits"] and json.loads((exits / "exitkit.json").read_text())["fitted"] is not None
    bare = generate_target(load_target(address, work), None, tmp_path / "bare", 2)
    before = generate_target(load_target(address, work), exits, tmp_path / "drawn", 2)
    given = {"budget": 0.8, "max_error": None, "policy": "static"}
    found = calibrate_target(load_target(address, work), work, exits, given)
    assert found.cost <= 0.82
    after = generate_target(load_target(address, work), exits, tmp_path / "drawn", 2)
    assert (
        bare["cost"] == 1 and after["cost"] <= 0.82 and before["samples"] == after["samples"] == 2
    )
    drawn = [load_file(tmp_path / n / "samples.safetensors")["samples"] for n in ("bare", "drawn")]
    assert drawn[0].shape == drawn[1].shape and not torch.equal(*drawn)
    assert json.loads((tmp_path / "drawn" / "trace.json").read_text()) == after


def test_bare_samples_are_those_of_the_pipeline(tmp_path: Path) -> None:
    work = pipe_settings()
    generate_target(load_target(DIT, work), None, tmp_path, 1)
    pipe = case("dit").make()
    sampler = ek.PipelineSampler(pipe, work.calls, **work.call)
    want = ek.generate(pipe.transformer, sampler, seeds=1).samples
    assert torch.equal(load_file(tmp_path / "samples.safetensors")["samples"], want)


def test_exits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"exitkit.json is not there"):
        generate_target(load_target(SUITE, settings()), tmp_path / "none", tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_trained_backbones_want_data(tmp_path: Path) -> None:
    work = pipe_settings().model_copy(update={"preset": "paper"})
    with pytest.raises(ConfigError, match=r"fit: exits of preset 'paper' are trained on data"):
        fit_target(load_target(DIT, work), work, tmp_path)
    with pytest.raises(ConfigError, match=r"no preset 'papr'.*Did you mean 'paper'"):
        wrong = work.model_copy(update={"preset": "papr"})
        fit_target(load_target(SUITE, wrong), wrong, tmp_path)
    work = settings(preset="paper")
    fit_target(load_target(SUITE, work), work, tmp_path / "paper")
    assert (tmp_path / "paper" / "backbone.safetensors").is_file()
