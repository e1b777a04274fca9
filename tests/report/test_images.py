"""Images of a report, against arrays made by hand."""

from __future__ import annotations

import torch

from exitkit.evaluation.figure_data import DepthMap, UncertaintyMaps
from exitkit.report.images import (
    _pixels,
    _strip,
    depth_maps,
    difference_grid,
    sample_grid,
    uncertainty_figure,
)


def test_pixels_are_scaled_to_colours_or_grey():
    grey = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 2)
    assert _pixels(grey).flatten().tolist() == [0.0, 0.5, 1.0, 1.0]
    colour = torch.zeros(2, 3, 4, 5)
    assert _pixels(colour).shape == (2, 4, 5, 3)


def test_strips_stand_side_by_side_with_a_gap():
    strip = torch.tensor(_strip(torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])))
    assert strip.shape == (4, 9)
    assert strip[:, :4].eq(0).all() and strip[:, 5:].eq(1).all() and strip[:, 4].isnan().all()


def test_grids_need_images_and_differences_a_second_row():
    images = {"full": torch.zeros(2, 1, 4, 4), "mine": torch.ones(2, 1, 4, 4)}
    assert sample_grid(images) is not None and difference_grid(images) is not None
    assert difference_grid({"full": images["full"]}) is None
    assert sample_grid({"full": torch.zeros(2, 5)}) is None, "vectors are no images"


def test_maps_need_something_to_show():
    assert depth_maps({}) is None
    share = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    picture = depth_maps({"mine": DepthMap((9.0, 7.0, 5.0, 3.0, 1.0), share)})
    assert picture is not None and "mine" in picture.alt
    flat = UncertaintyMaps((9.0,), *torch.rand(3, 1, 1, 8), "a")
    assert uncertainty_figure("mine", flat) is None
