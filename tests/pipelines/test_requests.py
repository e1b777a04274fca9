"""Keywords of calls, for one sample or several at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from exitkit.errors import ConfigError
from exitkit.pipelines.requests import Requests


class Pipe:
    """Takes what many pipelines take."""

    def __call__(
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        image: Any = None,
        class_labels: Any = None,
        clip_skip: Any = None,
        guidance_scale: float = 7.0,
        num_inference_steps: int = 30,
        generator: Any = None,
        return_dict: bool = True,
    ) -> None: ...


class Unconditional:
    """Takes a number of samples."""

    def __call__(self, batch_size: int = 1, steps: int = 10, **more: Any) -> None: ...


def of(calls: Any, seeds: list[int], pipe: Any = None, **keywords: Any) -> dict[str, Any]:
    return Requests(pipe or Pipe(), calls, keywords).of(seeds)


def test_a_single_call_is_as_it_was_written() -> None:
    row = torch.ones(1, 2, 3)
    calls = [{"prompt": "a", "prompt_embeds": row}, {"prompt": ["b"], "prompt_embeds": row}]
    first, second = of(calls, [4], guidance_scale=2.0), of(calls, [1])
    assert first["prompt"] == "a" and first["prompt_embeds"] is row
    assert second["prompt"] == ["b"] and first["guidance_scale"] == 2.0
    assert first["return_dict"] is False
    assert first["generator"].initial_seed() == 4


def test_several_calls_are_put_into_one() -> None:
    a, b = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red")
    calls = [
        {
            "prompt": "a",
            "prompt_embeds": torch.zeros(1, 2),
            "image": a,
            "class_labels": [3],
            "clip_skip": 1,
        },
        {
            "prompt": "b",
            "prompt_embeds": torch.ones(1, 2),
            "image": b,
            "class_labels": [7],
            "clip_skip": 1,
        },
    ]
    found = of(calls, [1, 2, 3], negative_prompt="ugly")
    assert found["prompt"] == ["b", "a", "b"] and found["negative_prompt"] == ["ugly"] * 3
    assert found["prompt_embeds"][:, 0].tolist() == [1, 0, 1]
    assert found["image"] == [b, a, b] and found["class_labels"] == [7, 3, 7]
    assert found["clip_skip"] == 1, "the same for all calls"
    assert [g.initial_seed() for g in found["generator"]] == [1, 2, 3]


def test_numbers_that_differ_are_listed_and_equal_prompts_too() -> None:
    assert of([{"class_labels": 3}, {"class_labels": 5}], [0, 1])["class_labels"] == [3, 5]
    assert of([{"prompt": "a"}], [0, 1])["prompt"] == ["a", "a"]
    spread = of([{"prompt": "a"}], [0, 1], image=torch.zeros(1, 3, 2, 2), clip_skip=2)
    assert spread["image"].shape == (2, 3, 2, 2) and spread["clip_skip"] == 2


def test_pipelines_without_conditions_are_told_how_many() -> None:
    found = of([{}], [3, 4], Unconditional())
    assert found == {"batch_size": 2}
    assert Requests(Unconditional(), [{}], {}).steps == 10
    assert Requests(Unconditional(), [{}], {"whatever": 1}).keywords == {"whatever": 1}


def test_what_cannot_be_put_into_one_is_named() -> None:
    calls = [{"guidance_scale": 2.0}, {"guidance_scale": 3.0}]
    with pytest.raises(ConfigError, match="'guidance_scale' of several calls.*rows=1"):
        of(calls, [0, 1])
    assert of(calls, [1])["guidance_scale"] == 3.0


def test_steps() -> None:
    requests = Requests(Pipe(), [{"prompt": "a"}], {})
    assert (requests.steps, requests.steps_name) == (30, "num_inference_steps")
    assert requests.with_steps(4) == {"num_inference_steps": 4}
    assert requests.given == ["prompt"] and len(requests) == 1
