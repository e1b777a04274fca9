"""Requests in threads, for seconds; `make soak` does it for minutes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.soak import soak


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_every_row_is_right_and_memory_flat(seconds: int) -> None:
    report = soak(seconds)
    assert report.wrong == [] and min(report.requests.values()) >= 8
    assert math.isnan(report.grown) or report.grown < 64


def test_one_scheduler_for_all_threads_would_be_noticed() -> None:
    """The control: threads that step one scheduler disturb each other, in bare pipelines as well."""

    def same(pipe: Any) -> Any:
        return pipe

    assert soak(0.0, copied=same).wrong
