"""Comparisons of classifiers, against naive runs of the unmodified pieces, one image at a time."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import exitkit as ek
from examples.reproduction.small import classify
from exitkit.benchmark import methods_for
from exitkit.errors import ConfigError, ShapeError
from exitkit.evaluation.baselines import executed_macs
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.results import Comparison
from exitkit.policies import (
    CALM,
    EntropyThreshold,
    FixedExit,
    NeverExit,
    Oracle,
    Patience,
    ScriptedExit,
    UncertaintyThreshold,
)
from exitkit.report import figures, write_report
from tests.backbones import resnet, vit

COUNT, SIZE = 24, 8


def images_for(kind: str) -> Tensor:
    side = {"vit": 16, "resnet": 32}[kind]
    return torch.randn(COUNT, 3, side, side, generator=torch.Generator().manual_seed(1))


class Naive:
    """The network and its exits' heads in pieces, with nothing of the executor around them."""

    def __init__(self, kind: str, preset: str = "branchynet") -> None:
        torch.manual_seed(0)
        network = {"vit": vit, "resnet": resnet}[kind]().eval()
        if kind == "resnet":  # untrained batch norms would leave little between images
            with torch.no_grad():
                network.train()(images_for(kind))
            network.eval()
        self.plain = copy.deepcopy(network)
        self.images = images_for(kind)
        self.model = ek.wrap(network, preset, example_inputs=(self.images[:2],))
        for parameter in self.model.exit_parameters():
            parameter.data = 0.6 * torch.randn_like(parameter)
        self.model.heads.mark_fitted()
        net: Any = self.plain
        if kind == "vit":
            self.stem = lambda x: net.norm_pre(net._pos_embed(net.patch_embed(x)))
            self.blocks = list(net.blocks)
            self.tail = lambda h: net.forward_head(net.norm(h))
            paths = [f"blocks.{i}" for i in range(3)]
        else:
            self.stem = lambda x: net.maxpool(net.act1(net.bn1(net.conv1(x))))
            self.blocks = [b for i in range(1, 5) for b in getattr(net, f"layer{i}")]
            self.tail = lambda h: net.fc(net.global_pool(h))
            paths = ["layer1.0", "layer1.1", "layer2.0", "layer3.0"]
        assert [e.path for e in self.model.exits] == paths
        self.heads = copy.deepcopy(self.model.heads.output)
        self.logits = functools.cache(self.at)  # where only the numbers count, not what runs
        with torch.no_grad():
            logits = self.plain(self.images)
        # The full model is right about three of four images.
        self.labels = torch.where(torch.arange(COUNT) % 4 == 0, 3, logits.argmax(dim=1))

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(SIZE), self.labels.split(SIZE), strict=True))

    @torch.no_grad()
    def at(self, row: int, depth: int, looks: int = 0) -> Tensor:
        """Logits of one image that leaves at a depth; heads before are looked at if asked for."""
        h = self.stem(self.images[row : row + 1])
        for k, block in enumerate(self.blocks, start=1):
            h = block(h)
            if k <= looks:
                self.heads[k - 1](h)
            if k == depth <= len(self.heads):
                return self.heads[k - 1](h)[0]
        return self.tail(h)[0]

    def depths(self, theta: float) -> list[int]:
        """Where images leave by entropy."""
        found = []
        for row in range(COUNT):
            for depth in range(1, len(self.heads) + 1):
                p = self.logits(row, depth).softmax(dim=0)
                if float(-(p * p.log()).sum()) / math.log(10) < theta:
                    break
            else:
                depth = len(self.heads) + 1
            found.append(depth)
        return found

    def some_leave(self) -> EntropyThreshold:
        """A threshold that neither all nor none of the images pass at the first exit."""
        first = torch.stack([self.logits(row, 1) for row in range(COUNT)]).softmax(dim=1)
        entropies = -(first * first.log()).sum(dim=1) / math.log(10)
        return EntropyThreshold(float(entropies.quantile(0.4)))

    def right(self, depths: list[int]) -> Tensor:
        classes = torch.stack([self.logits(r, d).argmax() for r, d in enumerate(depths)])
        return (classes == self.labels).double()


def compared(entries: list[Entry], batches: Any, **options: Any) -> Comparison:
    metrics = Metrics(repeats=options.pop("repeats", 1), seed=options.pop("seed", 0))
    return compare(entries, batches, metrics=metrics, progress=False, **options)


@pytest.fixture(scope="module")
def naive() -> Naive:
    return Naive("vit")


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_rows_are_those_of_one_image_at_a_time(kind: str) -> None:
    naive = Naive(kind)
    policy, last = naive.some_leave(), len(naive.heads) + 1
    depths = naive.depths(policy.threshold)
    assert len(set(depths)) > 1
    result = compared([Entry("mine", naive.model, policy)], naive.batches, baseline=naive.plain)
    row, full = result["mine"], naive.right([last] * COUNT)
    right = naive.right(depths)
    assert row.count == COUNT and result["full"].accuracy.mean == pytest.approx(full.mean())
    assert row.accuracy.mean == pytest.approx(float(right.mean()))
    assert row.against_full.mean == pytest.approx(float(right.mean() - full.mean()))
    at = naive.logits
    same = [at(r, d).argmax() == at(r, last).argmax() for r, d in enumerate(depths)]
    assert row.agreement == pytest.approx(sum(map(bool, same)) / COUNT)
    assert result.traces["mine"].depth[0].tolist() == depths
    assert row.depth == pytest.approx(sum(depths) / COUNT)
    # An exit's head runs where the policy looks, and once more for those who leave.
    looks = [min(d, last - 1) for d in depths]
    run = executed_macs(lambda: [naive.at(r, d, looks[r]) for r, d in enumerate(depths)])
    whole = executed_macs(lambda: [naive.at(r, last) for r in range(COUNT)])
    # The tail answers for a whole batch unless all of it has left.
    with torch.no_grad():
        h = naive.stem(naive.images[:1])
        for block in naive.blocks:
            h = block(h)
    waiting = [any(d == last for d in depths[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    gone = sum(d < last and waiting[r // SIZE] for r, d in enumerate(depths))
    run += gone * executed_macs(lambda: naive.tail(h))
    assert row.cost == pytest.approx(run / whole, rel=1e-6)
    assert row.layers == pytest.approx(sum(depths) / COUNT / last)
    assert result["full"].cost == result["full"].layers == 1.0
    assert full.mean() >= 0.75


def test_every_dynamic_policy_meets_its_mode_and_the_exit_of_its_cost(naive: Naive) -> None:
    policy = naive.some_leave()
    depths = naive.depths(policy.threshold)
    mode = max(sorted(set(depths)), key=depths.count)
    result = compared([Entry("mine", naive.model, policy)], naive.batches, baseline=naive.plain)
    kinds = [row.kind for row in result.rows]
    assert kinds[:3] == ["full", "policy", "mode schedule"] and kinds[-1] == "no exit"
    schedule = result.rows[2]
    assert schedule.name.startswith("mine, its schedule") and schedule.depth == mode
    assert schedule.accuracy.mean == pytest.approx(float(naive.right([mode] * COUNT).mean()))
    assert schedule.host_checks == 0 and schedule.class_share is None
    costs = [e.cost for e in naive.model.exits]
    near = 1 + min(range(3), key=lambda i: abs(costs[i] - result["mine"].cost))
    fixed = [row for row in result.rows if row.kind == "fixed exit"]
    assert [row.depth for row in fixed] == ([near] if near != mode else [])
    gap = naive.right(depths).mean() - naive.right([near] * COUNT).mean()
    assert result["mine"].against_fixed is not None
    assert result["mine"].against_fixed.mean == pytest.approx(float(gap))


def test_differences_are_resampled_in_pairs(naive: Naive) -> None:
    depths = tuple(2 + i % 3 for i in range(SIZE))
    result = compared(
        [Entry("script", naive.model, ScriptedExit(depths))], naive.batches, baseline=naive.plain
    )
    a = naive.right(list(depths) * (COUNT // SIZE)).tolist()
    b = naive.right([4] * COUNT).tolist()
    draw = random.Random(0)
    means = []
    for _ in range(4000):
        rows = draw.choices(range(COUNT), k=COUNT)
        means.append(sum(a[i] - b[i] for i in rows) / COUNT)
    means.sort()
    interval = result["script"].against_full
    assert interval.mean == pytest.approx((sum(a) - sum(b)) / COUNT)
    assert interval.low == pytest.approx(means[100], abs=1.01 / COUNT)
    assert interval.high == pytest.approx(means[-100], abs=1.01 / COUNT)
    # Where no image differs there is nothing to resample: unpaired intervals would not vanish.
    never = compared([Entry("never", naive.model, NeverExit())], naive.batches)["never"]
    assert never.against_full.low == never.against_full.high == 0.0
    assert never.accuracy.low < never.accuracy.high


def test_depth_by_class_is_the_share_between_classes(naive: Naive) -> None:
    policy = naive.some_leave()
    depths = torch.tensor(naive.depths(policy.threshold)).double()
    row = compared([Entry("mine", naive.model, policy)], naive.batches)["mine"]
    fitted = torch.stack([depths[naive.labels == label].mean() for label in naive.labels])
    share = (fitted - depths.mean()).square().sum() / (depths - depths.mean()).square().sum()
    assert row.class_share == pytest.approx(float(share))


def test_a_broken_exit_shows(naive: Naive) -> None:
    model = copy.deepcopy(naive.model)
    for parameter in model.heads.output[0].parameters():
        parameter.data.zero_()
    row = compared([Entry("blind", model, FixedExit(1))], naive.batches)["blind"]
    share = float((naive.labels == 0).double().mean())  # equal logits: the first class wins
    assert row.accuracy.mean == pytest.approx(share)
    assert row.against_full.high < 0
    # The labels count: with all of them wrong nobody is right, and agreement stays as it was.
    wrong = [(x, (naive.plain(x).argmax(dim=1) + 1) % 10) for x, _ in naive.batches]
    result = compared([Entry("never", naive.model, NeverExit())], wrong)
    assert result["never"].accuracy.mean == 0.0 and result["never"].agreement == 1.0


def test_equal_calls_give_equal_rows_and_leave_no_trace(naive: Naive) -> None:
    model, own = naive.model, naive.model.policy
    model.train()
    model.backbone.blocks[0].eval()
    flags = [m.training for m in model.modules()]
    entries = [Entry("mine", model, naive.some_leave()), Entry("patient", model, Patience(1))]
    loader = DataLoader(TensorDataset(naive.images, naive.labels), SIZE)
    once, twice = (compared(entries, loader, repeats=2) for _ in range(2))
    assert [replace(r, clock=None) for r in once.rows] == [
        replace(r, clock=None) for r in twice.rows
    ]
    assert all(row.clock is not None and row.clock.median > 0 for row in once.rows)
    assert once["full"].clock is not None and once["full"].clock.median == 1.0
    assert model.policy is own and [m.training for m in model.modules()] == flags
    other = compared(entries, loader, seed=7)
    assert other["mine"].accuracy.mean == once["mine"].accuracy.mean
    model.eval()


def test_only_fine_tuned_models_have_a_row_without_exits() -> None:
    naive = Naive("vit", "relative")
    result = compared([Entry("frozen", naive.model, UncertaintyThreshold(0.5))], naive.batches)
    assert "no exit" not in {row.kind for row in result.rows}
    tuned = Naive("vit")
    for parameter in tuned.model.backbone.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    entries = [Entry("a", tuned.model, FixedExit(1)), Entry("b", tuned.model, FixedExit(2))]
    result = compared(entries, tuned.batches, baseline=tuned.plain)
    rows = [row for row in result.rows if row.kind == "no exit"]
    assert [row.name for row in rows] == ["branchynet, no exit"]
    with torch.no_grad():
        moved = tuned.model.backbone(tuned.images).argmax(dim=1)
    assert rows[0].accuracy.mean == pytest.approx(float((moved == tuned.labels).double().mean()))
    assert rows[0].agreement < 1.0 and rows[0].cost == pytest.approx(1.0)


def test_other_networks_are_rows_too(naive: Naive) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return naive.tail(naive.blocks[1](naive.blocks[0](naive.stem(x))))

    result = compared([Entry("half", Half())], naive.batches, baseline=naive.plain)
    row = result["half"]
    half, whole = (
        executed_macs(lambda m=m: m(naive.images)) for m in (Half(), copy.deepcopy(naive.plain))
    )
    assert row.kind == "network" and row.cost == pytest.approx(half / whole)
    assert row.layers is None and row.depth is None and row.host_checks is None


def test_notes_say_what_the_table_cannot(naive: Naive) -> None:
    entries = [
        Entry("oracle", naive.model, Oracle(delta=1.0)),
        Entry("batch", naive.model, CALM("margin", 0.2, whole_batch=True)),
        Entry("shy", naive.model, EntropyThreshold(0.0)),
    ]
    result = compared(entries, naive.batches)
    assert result["oracle"].clock is None and result["batch"].clock is not None
    text = str(result)
    assert "'oracle' looks at what only the full model knows" in text
    assert "'batch' takes one decision for a whole batch" in text
    assert "'shy' let no image leave early" in text
    assert len(result.traces["batch"].depth[0][:SIZE].unique()) == 1


def test_a_comparison_can_be_kept(naive: Naive, tmp_path: Path) -> None:
    policy = naive.some_leave()
    result = compared([Entry("mine", naive.model, policy)], naive.batches)
    table = result.to_markdown().splitlines()
    assert len(table) == 2 + len(result.rows) and len({len(line) for line in table}) == 1
    data = json.loads(result.to_json(tmp_path / "a" / "b.json").read_text())
    assert [row["name"] for row in data["rows"]] == [row.name for row in result.rows]
    assert data["settings"]["policy of mine"].startswith("EntropyThreshold")
    assert [f.name for f in figures(result)] == ["accuracy"]
    page = write_report(result, tmp_path / "c.html").read_text()
    assert "is right on" in page and page.count("<img") == 1
    with pytest.raises(KeyError, match="no row 'yours'; rows: full, mine"):
        result["yours"]


def test_bad_requests_say_what_to_do(naive: Naive) -> None:
    entry = Entry("mine", naive.model, FixedExit(1))
    with pytest.raises(ConfigError, match="used up after the first"):
        compared([entry], iter(naive.batches))
    with pytest.raises(ConfigError, match="the batch has no labels"):
        compared([entry], [images for images, _ in naive.batches])
    with pytest.raises(ConfigError, match="the batches are empty"):
        compared([entry], [])
    with pytest.raises(ConfigError, match="or a DataLoader or a list"):
        compared([entry], naive.images)
    with pytest.raises(ConfigError, match="names that differ, got none"):
        compared([], naive.batches)
    with pytest.raises(ConfigError, match="two rows are called full"):
        compared([replace(entry, name="full")], naive.batches)
    with pytest.raises(ConfigError, match="repeats must be a whole number"):
        compared([entry], naive.batches, repeats=0)
    with pytest.raises(ConfigError, match="it needs baseline="):
        compared([Entry("net", naive.plain)], naive.batches)
    with pytest.raises(ConfigError, match="'net' is no wrapped model"):
        compared([Entry("net", naive.plain, FixedExit(1))], naive.batches, baseline=naive.plain)
    with pytest.raises(ConfigError, match="very images that are compared"):
        compared([entry], naive.batches, budgets=[0.5])
    with pytest.raises(ConfigError, match="seeds and fewer_steps are for samplers"):
        compared([entry], naive.batches, seeds=3)
    far = [(images, labels + 8) for images, labels in naive.batches]
    with pytest.raises(ShapeError, match="knows the classes 0 to 9"):
        compared([entry], far)
    with pytest.raises(ShapeError, match=r"'map' returned \(8, 3, 16, 16\) for 8 images"):
        compared([Entry("map", nn.Identity())], naive.batches, baseline=naive.plain)


@pytest.mark.parametrize("network", [pytest.param("vit", marks=pytest.mark.slow), "resnet"])
def test_the_example_fills_its_table(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if network == "resnet":  # one of each kind of head is enough there
        kept = methods_for(["berxit", "uncertainty*"], "classification")
        monkeypatch.setattr(classify, "METHODS", kept)
    folders = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(
        sys, "argv", ["classify.py", network, "--quick", "--threads", "1", *folders]
    )
    classify.main()
    assert "done in" in capsys.readouterr().out
    page = (tmp_path / f"classification_{network}.md").read_text()
    data = json.loads((tmp_path / f"classification_{network}.json").read_text())
    policies = [row for row in data["rows"] if row["kind"] == "policy"]
    assert len(policies) == len(classify.METHODS)
    for row in data["rows"]:
        assert f"| {row['name']} " in page
        assert 0 < row["cost"] < 2 and 0 <= row["accuracy"]["mean"] <= 1


def test_the_example_refuses_networks_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["classify.py", "vgg"])
    with pytest.raises(SystemExit):
        classify.main()
    assert "no network 'vgg'; networks: vit, resnet" in capsys.readouterr().err
