"""Exits go to a hub and come back; the hub is a server on this machine that speaks its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import exitkit as ek
from exitkit.errors import CheckpointError
from exitkit.persistence.hub import local_folder
from exitkit.policies import FixedExit, Interval
from tests.backbones import case
from tests.copies import copies
from tests.hub_server import Hub, hub
from tests.tiny_pipelines import case as pipeline

__all__ = ["hub"]  # a fixture


@copies
def wrapped(preset: str = "relative", seed: int = 0) -> Any:
    args, _ = case("uvit").inputs(2)
    return ek.wrap(case("uvit").make(seed), preset, example_inputs=args)


def test_exits_go_there_and_back(hub: Hub) -> None:
    model = wrapped()
    model.policy = FixedExit(2)
    assert model.push_to_hub("owner/exits") == f"{hub.address}/owner/exits/commit/{1:040x}"
    # Never the backbone.
    assert set(hub.files("owner/exits")) == {"README.md", "exitkit.json", "exits.safetensors"}
    model.policy = FixedExit(1)
    model.push_to_hub("owner/exits", commit_message="Leave earlier")
    args, _ = case("uvit").inputs(2)
    loaded = ek.load(case("uvit").make(), "owner/exits")
    with torch.no_grad():
        assert loaded.policy == FixedExit(1) and torch.equal(loaded(*args), model(*args))
    first = ek.load(case("uvit").make(), "owner/exits", revision=f"{1:040x}")
    assert first.policy == FixedExit(2)


def test_a_trained_backbone_goes_along_if_that_is_asked_for(hub: Hub) -> None:
    model = wrapped("paper")
    model.push_to_hub("owner/trained", include_backbone=True)
    assert "backbone.safetensors" in hub.files("owner/trained")
    loaded = ek.load(case("uvit").make(5), "owner/trained")  # other weights, which are replaced
    args, _ = case("uvit").inputs(2)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(*args), model.backbone(*args))


def test_denoisers_of_a_pipeline_share_a_repository(hub: Hub) -> None:
    one = pipeline("wan")
    models = one.wrap(one.make(), "relative")
    models.policy = Interval(2)
    models.push_to_hub("owner/video")
    assert {"exitkit.json", "transformer_2/exits.safetensors"} <= set(hub.files("owner/video"))
    assert ek.load(one.make(), "owner/video").policy == Interval(2)


def test_what_a_hub_refuses_is_told(hub: Hub) -> None:
    with pytest.raises(
        CheckpointError, match=r"owner/nothing is no folder here.*Repo.*save_pretrained"
    ):
        ek.load(case("uvit").make(), "owner/nothing")
    hub.refuses = True
    with pytest.raises(
        CheckpointError, match=r"push_to_hub: owner/exits was not written.*hf auth login"
    ):
        wrapped().push_to_hub("owner/exits")
    with pytest.raises(CheckpointError, match=r"push_to_hub: a b c was not written"):
        wrapped().push_to_hub("a b c")


def test_folders_come_first_and_other_paths_are_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    for path in ("owner/name", "./a", "../b/c", "/x/y", "a/b/c", "exits", tmp_path / "none"):
        assert local_folder(path) == Path(path)
    with pytest.raises(AssertionError, match="asked the hub"):
        local_folder("owner/other")
