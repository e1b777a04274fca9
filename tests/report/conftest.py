"""One comparison for all reports."""

from __future__ import annotations

import pytest

from tests.report import results


@pytest.fixture(scope="session")
def comparison():
    return results.comparison()
