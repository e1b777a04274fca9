"""Networks of timm by name."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")

from exitkit.benchmark.timm_models import timm_model
from exitkit.errors import ConfigError


def test_a_network_takes_images_of_the_size_that_it_is_made_for() -> None:
    network, (images,) = timm_model("test_vit.r160_in1k")
    assert images.shape == (2, 3, 160, 160) and not network.training
    with torch.no_grad():
        assert network(images).shape == (2, 1000)


def test_an_unknown_name_is_refused_with_those_alike() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet51'.* Did you mean .*resnet5"):
        timm_model("resnet51")
