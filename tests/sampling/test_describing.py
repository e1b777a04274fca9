"""Descriptions of samplers survive a file as they are."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from exitkit.sampling.describing import by_name, in_words, plain_values, settings_of


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()], ids=["finite", "infinite"]
)
def test_no_setting_of_a_scheduler_is_lost(scheduler):
    described = settings_of(scheduler)
    assert described["class"] == type(scheduler).__name__
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    own = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert described.keys() - {"class"} == own.keys()


def test_what_json_has_no_word_for_is_text():
    described = plain_values(
        {
            "least": -float("inf"),
            "more": [float("inf"), float("nan")],
            "dtype": torch.float16,
            "n": 1,
        }
    )
    assert described == {
        "least": "-Infinity",
        "more": ["Infinity", "NaN"],
        "dtype": "torch.float16",
        "n": 1,
    }


def test_conditions_are_told_by_name_and_tensors_by_shape() -> None:
    assert by_name({"y": 1, "a": 2}) == ["a", "y"] and by_name(None) is None
    assert by_name(in_words) == "in_words"
    assert in_words(torch.zeros(2, 3)) == "tensor (2, 3)" and in_words(3) == 3
    assert in_words(object()) == "object"
