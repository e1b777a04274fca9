"""The model card says what lies in the folder, and what it may be used for."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from torch import nn

from exitkit.persistence.card import Base, base_of, text, text_of_several
from exitkit.persistence.settings import Fingerprint, Settings
from exitkit.policies import Calibration, FixedExit, NeverExit, UncertaintyThreshold

SETTINGS = Settings(
    config={"preset": "carried", "loss": {"train_backbone": False}},
    policy={},
    exits=("blocks.0", "blocks.2"),
    backbone=Fingerprint(class_name="Net", structure="12"),
    fitted={"scheduler": {"class": "DDIMScheduler"}, "steps": 28},
    versions={"torch": "2.9"},
)
FOUND = Calibration(
    UncertaintyThreshold(0.2), 0.5123, 0.0456, relative=0.031, budget=0.55, seeds=(7, 9)
)


def front(card: str) -> str:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    return found[1]


def test_everything_that_a_reader_asks_stands_there() -> None:
    base = Base("Net", "owner/net", "mit")
    card = text(SETTINGS, FOUND.policy, FOUND, base)
    assert front(card).splitlines() == [
        *(
            "library_name: exitkit",
            "tags:",
            "- early-exit",
            "base_model:",
            "- owner/net",
            "license: mit",
        )
    ]
    for part in (
        *("# Exits for Net", "`owner/net`", "`carried`", "`blocks.0`, `blocks.2`", "torch 2.9"),
        *(
            "UncertaintyThreshold(threshold=0.2)",
            "0.5123 of the full",
            "0.0456, 3.10%",
            "seeds 7 to 9",
        ),
        *(
            "rollouts of DDIMScheduler, 28 steps",
            "ek.load(backbone,",
            "Net: mit",
            "not in this folder",
        ),
    ):
        assert part in card, part


def test_what_is_not_known_is_said() -> None:
    card = text(SETTINGS, NeverExit(), None, Base("Net"))
    assert "license" not in front(card) and "base_model" not in front(card)
    assert "not measured: call `ek.calibrate`" in card and "Net: not known here" in card
    trained = SETTINGS.model_copy(
        update={"config": {"preset": "paper", "loss": {"train_backbone": True}}}
    )
    card = text(trained, NeverExit(), None, Base("Net", "here/deep/folder"))
    assert (
        "the weights of the backbone that was trained" in card and "not in this folder" not in card
    )
    assert "base_model" not in front(card), "a folder is no name on a hub"


def test_several_denoisers_have_one_card() -> None:
    parts: dict[str, Any] = {
        "one": (FOUND.policy, FOUND, Base("Net", "owner/net", "mit")),
        "two": (FixedExit(1), None, Base("Other", "owner/net", "apache-2.0")),
    }
    card = text_of_several(parts)
    assert front(card).count("- owner/net") == 1 and "license:" not in front(card)
    assert "`two` | Other of `owner/net`" in card and "Net: mit; Other: apache-2.0" in card
    assert "0.5123" in card and "ek.load(pipe," in card


def network(place: str) -> nn.Module:
    made = nn.Linear(1, 1)
    made.config = SimpleNamespace(_name_or_path=place)  # type: ignore[assignment]
    return made


def test_where_backbones_come_from(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224")
    assert base_of(vit).name == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert base_of(vit).license == "apache-2.0" and base_of(vit).on_hub
    assert base_of(nn.Linear(1, 1)) == Base("Linear")
    assert base_of(network("owner/name")).on_hub
    # As diffusers loads a component: from a folder of the cache, whose card stands one level above.
    folder = tmp_path / "models--stability--sd-3.5" / "snapshots" / "1f2e" / "transformer"
    folder.mkdir(parents=True)
    assert base_of(network(str(folder))) == Base("Linear", "stability/sd-3.5")
    (folder.parent / "README.md").write_text(
        "---\ntags: [a]\nlicense: openrail++\n---\nlicense: no\n"
    )
    assert base_of(network(str(folder))) == Base("Linear", "stability/sd-3.5", "openrail++")


@pytest.mark.parametrize("card", ["", "license: mit", "---\nlicence: mit\n---\n", "\xff\xfe"])
def test_cards_without_a_licence(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_bytes(card.encode("latin1"))
    assert base_of(network(str(tmp_path))).license is None
