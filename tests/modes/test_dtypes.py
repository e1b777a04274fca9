"""What a model computes in, where its weights are stored in fewer bits or in many dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitkit.modes.dtypes import ComputeDtype, compute_dtype

NARROW = torch.float8_e4m3fn


def net(*dtypes: torch.dtype) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2).to(dtype) for dtype in dtypes))


@pytest.mark.parametrize(
    ("stored", "declared", "expected"),
    [
        ([torch.float32], None, torch.float32),
        ([torch.float16, torch.float32], None, torch.float16),
        ([NARROW, torch.bfloat16], None, torch.bfloat16),
        ([NARROW, torch.float32], torch.bfloat16, torch.bfloat16),
        ([torch.bfloat16], torch.float32, torch.float32),
        # Narrower than the first: OpenAI's networks name what their inner layers compute in.
        ([torch.float32, torch.float16], torch.float16, torch.float32),
        ([NARROW], None, None),
        ([], None, None),
    ],
)
def test_what_a_model_computes_in(
    stored: list[torch.dtype], declared: torch.dtype | None, expected: torch.dtype | None
) -> None:
    model = net(*stored)
    if declared is not None:
        model.dtype = declared
    assert compute_dtype(model) == expected


def test_it_is_asked_anew_where_the_model_was_cast() -> None:
    model = net(torch.float32, torch.float32)
    dtype = ComputeDtype(model)
    assert dtype() == torch.float32
    model.to(torch.bfloat16)
    assert dtype() == torch.bfloat16
    model[0].to(NARROW)
    assert dtype() == torch.bfloat16
    model[0] = nn.Identity()
    model[1].double()
    assert dtype() == torch.float64
