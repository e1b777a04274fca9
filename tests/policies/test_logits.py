"""What classification policies read off logits, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from exitkit.errors import ShapeError
from exitkit.policies import CALM, ConfidenceThreshold, EntropyThreshold, Patience
from exitkit.policies.logits import class_logits, entropy, largest_probability, probability_margin
from tests.policies.families import table


def test_policies_of_classifiers_refuse_images() -> None:
    for policy in (
        Patience(1),
        CALM("margin", 0.5),
        EntropyThreshold(0.5),
        ConfidenceThreshold(0.5),
    ):
        with pytest.raises(ShapeError, match=r"reads class logits .*UncertaintyThreshold"):
            table(0).walk(policy)


def test_numbers_of_a_softmax_against_a_loop() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    for row, h, top, margin in zip(
        logits.tolist(),
        entropy(logits).tolist(),
        largest_probability(logits).tolist(),
        probability_margin(logits).tolist(),
        strict=True,
    ):
        total = sum(map(math.exp, row))
        p = sorted((math.exp(x) / total for x in row), reverse=True)
        assert h == pytest.approx(-sum(x * math.log(x) for x in p))
        assert top == pytest.approx(p[0]) and margin == pytest.approx(p[0] - p[1])


def test_half_precision_is_read_as_float32_and_double_stays() -> None:
    rule = EntropyThreshold(0.5)
    for dtype, read in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert class_logits(rule, torch.zeros(2, 3, dtype=dtype)).dtype == read
    for shape in ((2,), (2, 1), (2, 3, 4)):
        with pytest.raises(
            ShapeError, match=r"EntropyThreshold\(threshold=0.5\) reads class logits"
        ):
            class_logits(rule, torch.zeros(shape))
