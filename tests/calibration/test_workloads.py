"""Which workload is made of what."""

from __future__ import annotations

import pytest
from torch import Tensor

from exitkit.calibration.workloads import make_workload
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel
from exitkit.policies import FixedExit
from tests.calibration import models
from tests.calibration.classifiers import classifier, images


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


def test_labels_are_optional() -> None:
    model, batches = classifier(), images(8, 0)
    bare: list[Tensor] = [batch for batch, _ in batches]
    assert make_workload(model, bare).measure(FixedExit(1)) == make_workload(
        model, batches
    ).measure(FixedExit(1))


def test_what_cannot_be_a_workload_is_refused(relative: ExitModel) -> None:
    with pytest.raises(ConfigError, match="a sampler, or batches of images.* got DDIMScheduler"):
        make_workload(relative, models.SCHEDULER)
    with pytest.raises(ConfigError, match="used up after the first"):
        make_workload(classifier(), iter(images(4, 0)))
    with pytest.raises(ConfigError, match="seeds= names trajectories"):
        make_workload(classifier(), images(4, 0), 8)
    with pytest.raises(CalibrationError, match="the loader is empty"):
        make_workload(classifier(), [])
