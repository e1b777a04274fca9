"""What addresses stand for, and how settings are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from diffusers import DiTPipeline

from exitkit.benchmark.targets import WorkSettings, load_target, read_work
from exitkit.errors import ConfigError
from exitkit.pipelines import PipelineSampler
from exitkit.sampling.sampler import Sampler
from tests.tiny_pipelines import case

WORK = WorkSettings(calls=[{"class_labels": [1]}], call={"num_inference_steps": 3})


def test_a_folder_is_a_pipeline(tmp_path: Path) -> None:
    case("dit").make().save_pretrained(tmp_path)
    target = load_target(str(tmp_path), WORK)
    assert isinstance(target.subject, DiTPipeline) and target.name == "DiTPipeline"
    assert target.example_inputs == {"class_labels": [1], "num_inference_steps": 3}
    assert isinstance(target.sampler, PipelineSampler) and target.sampler.steps == 3
    with pytest.raises(ConfigError, match=r"holds no model_index.json.*save_pretrained"):
        load_target(str(tmp_path / "transformer"), WORK)


def test_functions_make_pipelines_or_suites() -> None:
    target = load_target("tests.tiny_pipelines:tiny_dit", WORK)
    assert isinstance(target.subject, DiTPipeline) and target.suite is None
    target = load_target("tests.tiny_suites:suite", WORK)
    assert target.name == "tiny" and isinstance(target.with_sampler("fit"), Sampler)
    with pytest.raises(ConfigError, match=r"gives Module.*diffusers pipeline or an exitkit"):
        load_target("torch.nn:Module", WORK)


def test_networks_of_timm_have_no_sampler() -> None:
    target = load_target("timm/test_vit", WORK)
    assert type(target.subject) is type(timm.create_model("test_vit"))
    with pytest.raises(
        ConfigError, match=r"fit: timm/test_vit has no sampler.*folder of a diffusers"
    ):
        target.with_sampler("fit")


def test_settings_are_json_or_toml(tmp_path: Path) -> None:
    assert read_work(None) == WorkSettings()
    (tmp_path / "s.json").write_text(json.dumps({"preset": "carried", "fit": {"steps": 7}}))
    (tmp_path / "s.toml").write_text('preset = "carried"\n[fit]\nsteps = 7\n')
    one, two = read_work(tmp_path / "s.json"), read_work(tmp_path / "s.toml")
    assert one == two and one.fit.steps == 7


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            '{"presett": "carried"}',
            r"presett: Extra inputs.*found 'carried'. Settings are preset, ",
        ),
        ('{"fit": {"steps": "many"}}', r"fit.steps: .*integer, found 'many'"),
        ('{"fit": {"steps": 2.5}}', r"fit.steps: .*found 2.5"),
        (
            '{"rows": 0, "calibrate": {"budget": 3}}',
            r"rows: .*found 0; calibrate.budget: .*found 3",
        ),
        ('{"calls": {"prompt": "a"}}', r"calls: .*list"),
        ("[1]", r"expected a mapping of settings, found a list"),
        ("{", r"no settings could be read.*\.json or \.toml"),
        ("\x00\xff", r"no settings could be read"),
    ],
)
def test_settings_that_are_not_well(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match=match):
        read_work(file)
    with pytest.raises(ConfigError, match=r"none.json: no settings could be read"):
        read_work(tmp_path / "none.json")
