"""What surgery finds, as data: shapes of rows, layout families, and the printed table."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import exitkit as ek
from exitkit.surgery.spec import HiddenSpec, Leaf
from tests.backbones import case


@pytest.mark.parametrize(
    ("leaf", "row"),
    [
        (Leaf("h", (2, 6, 8), "float32", 0), (6, 8)),
        (Leaf("h", (6, 2, 8), "float32", 1), (6, 8)),
        (Leaf("h", (6, 8), "float32"), (6, 8)),
        (Leaf("h", (6, 8), "float32", 0, 6, whole=True), (6, 8)),
    ],
)
def test_a_row_has_the_shape_without_the_batch(leaf: Leaf, row: tuple[int, ...]) -> None:
    assert leaf.row == row


@pytest.mark.parametrize(
    ("shape", "channel", "kind"),
    [
        ((8,), 0, "vector"),
        ((6, 8), 1, "tokens"),
        ((8, 6), 0, "other"),
        ((8, 4, 4), 0, "features"),
        ((4, 4, 8), 2, "features"),
        ((8, 3, 4, 4), 0, "other"),
    ],
)
def test_the_layout_decides_the_family(shape: tuple[int, ...], channel: int, kind: str) -> None:
    spec = HiddenSpec(shape, channel)
    assert (spec.kind, spec.channels, spec.numel) == (kind, 8, math.prod(shape))


def test_a_plan_prints_every_boundary_and_every_refusal() -> None:
    one = case("unet")
    args, _ = one.inputs(2)
    plan = ek.inspect(one.make(), example_inputs=args)
    title, _, *lines = str(plan).splitlines()
    assert title.startswith("UNet2DModel: 5 stages, noisy input 'sample', timestep 'timestep'")
    for boundary, line in zip(plan.boundaries, lines, strict=False):
        cells = line.split()
        assert cells[:3] == [str(boundary.stage), boundary.path, boundary.class_name]
        assert f"{boundary.share:.1%}" in cells
        assert ("yes" in cells) == boundary.usable
        assert "the end of the network" in line or boundary.usable
    rest = lines[len(plan.boundaries) :]
    assert len(rest) == len(plan.rejected) + len(plan.views)
    assert plan.noisy_leaf.path == plan.noisy and plan.prediction_leaf.path == plan.prediction


def test_a_reason_that_repeats_is_printed_once_with_a_count() -> None:
    one = case("unet")
    plan = ek.inspect(one.make(), example_inputs=one.inputs(2)[0])

    def told(*rejected: tuple[str, str]) -> list[str]:
        lines = str(replace(plan, rejected=rejected)).splitlines()
        return [line for line in lines if line.startswith("not a block")]

    many = [(f"norms.{i}", "no weight matrix") for i in range(49)]
    assert told(("stem", "a small stem"), *many) == [
        "not a block: stem (a small stem)",
        "not a block: norms.0, norms.1, norms.2 and 46 more (no weight matrix)",
    ]
    # Control: a few are printed one by one, and so are different reasons.
    assert len(told(*many[:4])) == 4
    assert len(told(*((path, f"{why} {i}") for i, (path, why) in enumerate(many)))) == 49
