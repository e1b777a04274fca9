"""A call that was described can be made again: same names, shapes, dtypes, values and ranges."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.errors import CheckpointError
from exitkit.persistence.example import MOST_VALUES, describe, drawn

CPU = torch.device("cpu")


def again(example: Any) -> ek.Inputs:
    return drawn(json.loads(json.dumps(describe(example))), CPU, "exitkit.json")


def test_what_is_small_or_plain_comes_back_as_it_was() -> None:
    x, steps = torch.randn(2, 3, 8, 8), torch.tensor([7, 999])
    given = {
        "steps": steps,
        "scale": 0.25,
        "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
        "flags": {"return_dict": False, "sizes": (1, 2, [3, None])},
        "dtype": torch.float16,
        "none": torch.empty(0, 4),
    }
    made = again(ek.Inputs(x, "text", **given))
    assert made.args[1] == "text" and list(made.kwargs) == list(given)
    for name in ("steps", "half", "none"):
        assert torch.equal(made.kwargs[name], given[name])
        assert made.kwargs[name].dtype == given[name].dtype  # type: ignore[union-attr]
    for name in ("scale", "flags", "dtype"):
        assert made.kwargs[name] == given[name]
    assert made.args[0].shape == x.shape and not torch.equal(made.args[0], x)


def test_large_tensors_are_drawn_from_what_was_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    n = (40, 30)
    given = {
        "x": 3 + 2 * torch.randn(n, generator=generator),
        "ids": torch.randint(5, 900, n, generator=generator),
        "bool": torch.rand(n, generator=generator) > 0.5,
        "mask": torch.ones(n, dtype=torch.long),
        "bias": torch.where(torch.rand(n, generator=generator) > 0.2, 0.0, -torch.inf),
        "whole": torch.randint(0, 50, n, generator=generator).float(),
        "holes": torch.randn(n, generator=generator).index_fill(0, torch.tensor([1]), torch.nan),
        "wave": torch.randn(n, dtype=torch.complex64, generator=generator),
    }
    assert all(t.numel() > MOST_VALUES for t in given.values())
    before = torch.get_rng_state()
    made = again(given).kwargs
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in given.items():
        assert made[name].shape == tensor.shape and made[name].dtype == tensor.dtype
    assert 2.5 < float(made["x"].mean()) < 3.5 and 1.7 < float(made["x"].std()) < 2.3
    assert float(given["x"].min()) <= float(made["x"].min())
    assert float(made["x"].max()) <= float(given["x"].max())
    assert 5 <= int(made["ids"].min()) and int(made["ids"].max()) < 900
    assert torch.equal(made["mask"], given["mask"])
    assert made["bool"].any() and not made["bool"].all()
    assert set(made["bias"].unique().tolist()) == {0.0, -torch.inf}
    assert torch.equal(made["whole"], made["whole"].round()) and float(made["whole"].min()) >= 0
    assert bool(made["holes"].isfinite().all())
    # Always the same ones, and nothing of the example itself.
    assert torch.equal(again(given).kwargs["x"], made["x"])
    assert not torch.equal(made["x"], given["x"])


def test_a_range_that_is_missing_is_damage() -> None:
    told = describe((torch.randint(5, 9, (40, 3)) * 100,))
    told["args"][0]["tensor"].pop("choices")
    with pytest.raises(CheckpointError, match=r"exitkit.json.*damaged.*(low|high)"):
        drawn(told, CPU, "exitkit.json")


class Own:
    """Nothing that JSON knows."""


@pytest.mark.parametrize("value", [Own(), [1, Own()], {"a": {2: Own()}}, torch.Generator()])
def test_objects_of_other_classes_are_named(value: Any) -> None:
    told = json.loads(json.dumps(describe({"x": torch.ones(2), "other": value})))
    with pytest.raises(
        CheckpointError, match=r"class (.*Own|builtins.dict|torch.*Generator).*example_inputs="
    ):
        drawn(told, CPU, "exitkit.json")


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"args": 3, "kwargs": {}},
        {"args": [], "kwargs": []},
        {"args": [{"tensor": [1, 2]}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [2], "dtype": "nn", "values": [1, 2]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [3], "dtype": "float32", "values": [1, 2]}}], "kwargs": {}},
        {"args": [{"thing": 1}], "kwargs": {}},
        {"args": [{}], "kwargs": {}},
    ],
)
def test_damaged_descriptions_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"here.json: the description.*damaged.*example_inputs="
    ):
        drawn(told, CPU, "here.json")
