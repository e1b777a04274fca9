"""Rivals that are networks: two in turn, counted work, and their row of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.evaluation.baselines import DuoDiff, executed_macs
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.generation import SampledSet
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Kind
from exitkit.policies import FixedExit, NeverExit
from exitkit.report import write_report
from exitkit.report.style import MARKERS
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import Sampler
from tests.tiny_suites import SHAPE, backbone, wrapped

STEPS = 8


class Conditioned(nn.Module):
    """A network whose rows depend on their conditions, wherever these are nested."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=g))
        self.rows_seen: list[int] = []

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        more: dict[str, Any] | None = None,
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        self.rows_seen.append(len(x))
        mixed = torch.einsum("bchw,cd->bdhw", x, self.weight) * scale
        mixed = mixed + (t.float() / 1000)[:, None, None, None]
        if y is not None:
            mixed = mixed + y[:, None, None, None]
        if more is not None:
            deep, pair = more["deep"], more["pair"]
            mixed = mixed * deep["text"].mean(dim=1)[:, None, None, None] + pair[0].reshape(
                -1, 1, 1, 1
            )
            assert deep["none"] is None and len(deep["shared"]) == 2
        return {"sample": mixed}


def conditions(rows: Tensor) -> dict[str, Any]:
    """Conditions of some rows out of nine."""
    g = torch.Generator().manual_seed(5)
    y, text, third = (torch.randn(9, n, generator=g)[rows] for n in (1, 4, 1))
    deep = {"text": text, "none": None, "shared": torch.ones(2)}
    return {"y": y[:, 0], "more": {"deep": deep, "pair": [third[:, 0]]}, "scale": 2.0}


@pytest.mark.parametrize(
    "times", [(900, 10, 600, 599, 601, 0, 999, 300, 700), (700,) * 9, (10,) * 9]
)
def test_every_row_is_predicted_by_the_network_of_its_timestep(times: tuple[int, ...]) -> None:
    shallow, full = Conditioned(1), Conditioned(2)
    duo = DuoDiff(shallow, full, 600)
    x = torch.randn(9, *SHAPE)
    t = torch.tensor(times)
    together = duo(x, t, **conditions(torch.arange(9)))
    early = sum(time >= 600 for time in times)
    assert (shallow.rows_seen, full.rows_seen) == ([early] * bool(early), [9 - early] * (early < 9))
    for i, time in enumerate(times):
        alone = torch.tensor([i])
        own, other = (shallow, full) if time >= 600 else (full, shallow)
        given = conditions(alone)
        want = own(x[alone], t[alone], **given)["sample"]
        torch.testing.assert_close(together[alone], want)
        # Negative control: the other network says something else.
        assert not torch.allclose(together[alone], other(x[alone], t[alone], **given)["sample"])


def test_two_networks_in_turn_train_and_refuse_a_switch_that_is_no_number() -> None:
    duo = DuoDiff(backbone(depth=1), backbone(depth=2), 500.0)
    duo(torch.randn(2, *SHAPE), torch.tensor([900, 100])).square().sum().backward()
    assert all(p.grad is not None for p in duo.parameters())
    for bad in (float("nan"), "half", None):
        with pytest.raises(ConfigError, match=r"DuoDiff.switch"):
            DuoDiff(backbone(), backbone(), bad)  # type: ignore[arg-type]


# --- counted work ---------------------------------------------------------------------------------


def test_executed_macs_of_linear_maps_convolutions_and_attention() -> None:
    x = torch.randn(5, 7, 12)
    assert executed_macs(lambda: nn.Linear(12, 30)(x)) == 5 * 7 * 12 * 30
    image = torch.randn(2, 3, 9, 9)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert executed_macs(lambda: conv(image)) == 2 * 5 * 5 * 8 * 3 * 3 * 3
    grouped = nn.Conv2d(4, 8, 3, groups=2)
    assert executed_macs(lambda: grouped(torch.randn(1, 4, 9, 9))) == 7 * 7 * 8 * 2 * 3 * 3
    q = torch.randn(2, 4, 6, 8)
    attend = nn.functional.scaled_dot_product_attention
    assert executed_macs(lambda: attend(q, q, q)) == 2 * 2 * 4 * 6 * 6 * 8

    def branch(often: bool) -> None:
        for _ in range(3 if often else 1):
            nn.Linear(12, 12)(x)

    assert executed_macs(lambda: branch(True)) == 3 * executed_macs(lambda: branch(False))


def test_work_that_nobody_can_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="no operation with a known cost"):
        executed_macs(lambda: torch.ones(3) + 1)


# --- a row of a comparison ------------------------------------------------------------------------


DDIM = DDIMScheduler(clip_sample=False)
QUICK = Metrics(exits=False, clock=False)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    duo = DuoDiff(backbone(depth=2), backbone(), 500.0)
    return compare(
        [
            Entry("mine", wrapped("relative"), FixedExit(3)),
            Entry("small", backbone(depth=3)),
            Entry("the same", backbone()),
            Entry("two in turn", duo),
        ],
        Sampler(DDIM, SHAPE, STEPS),
        baseline=backbone(),
        seeds=range(4),
        metrics=QUICK,
        progress=False,
    )


def macs_per_row(depth: int) -> int:
    """Closed form: 16 tokens of width 32, the shift once a row, 3 channels in and out."""
    tokens, dim = 16, 32
    return tokens * 2 * 3 * dim + depth * (tokens * 2 * dim * 2 * dim + dim * dim)


def test_a_network_costs_its_work_over_that_of_the_full_model(comparison: Comparison) -> None:
    small, same, duo = (comparison[n] for n in ("small", "the same", "two in turn"))
    assert small.kind == same.kind == duo.kind == "network"
    assert small.cost == pytest.approx(macs_per_row(3) / macs_per_row(6), rel=1e-9)
    assert same.cost == pytest.approx(1.0)
    DDIM.set_timesteps(STEPS)
    early = sum(int(t) >= 500 for t in DDIM.timesteps)
    assert 0 < early < STEPS
    want = (early * macs_per_row(2) / macs_per_row(6) + STEPS - early) / STEPS
    assert duo.cost == pytest.approx(want, rel=1e-9)
    assert small.layers is None, "layers of another network are not those of the full model"
    assert comparison["mine"].layers is not None


def test_a_network_meets_fewer_steps_at_its_cost(comparison: Comparison) -> None:
    small = comparison["small"]
    bought = round(small.cost * STEPS)
    row = comparison[f"fewer steps ({bought})"]
    assert row.cost == bought / STEPS
    assert small.against_steps is not None
    assert small.against_steps.mean == pytest.approx(small.distance.mean / row.distance.mean)
    assert comparison["the same"].against_steps is None, "nothing is fewer at the full cost"
    kinds = [r.kind for r in comparison.rows if r.family == "small"]
    assert kinds == ["network"], "no schedule and no fixed exit for what has no exits"


def test_distances_of_networks_are_measured(comparison: Comparison) -> None:
    images = {
        depth: Sampler(DDIM, SHAPE, STEPS).run(backbone(depth), range(4)).samples
        for depth in (3, 6)
    }
    want = float(paired_distance(images[3], images[6]).mean())
    assert comparison["small"].distance.mean == pytest.approx(want, rel=1e-4)
    # Negative controls: the full model under another name is no distance away, the small one is.
    assert comparison["the same"].distance.mean == pytest.approx(0.0, abs=1e-6)
    assert want > 0.01


def test_networks_have_a_mark_of_their_own_in_reports(
    comparison: Comparison, tmp_path: Path
) -> None:
    page = write_report(comparison, tmp_path / "report.html").read_text()
    assert page.count('class="mark pentagon"') == 3 and ".pentagon{" in page
    assert set(MARKERS) == set(get_args(Kind)), "every kind of row can be drawn"
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_networks_alone_need_a_baseline_and_no_policy() -> None:
    with pytest.raises(ConfigError, match="needs baseline="):
        compare([Entry("small", backbone(3))], Sampler(DDIM, SHAPE), progress=False)
    ground = SampledSet({"ddim": Sampler(DDIM, SHAPE, 2)}, (0,), QUICK)
    with pytest.raises(ConfigError, match="'small' is no wrapped model; use wrap first"):
        ground.line_up([Entry("small", backbone(3), NeverExit())], backbone())
    alone = compare(
        [Entry("small", backbone(3))],
        Sampler(DDIM, SHAPE, 2),
        baseline=backbone(),
        seeds=range(2),
        progress=False,
    )
    assert [row.kind for row in alone.rows] == ["full", "network", "fewer steps"]
    assert "small" in str(alone)
