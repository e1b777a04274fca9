"""The runs of a comparison, on a set whose outputs and accounts are made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitkit.evaluation.entries import Rival
from exitkit.evaluation.evaluation_set import EvaluationSet, run_all
from exitkit.policies import NeverExit


class Numbers(EvaluationSet):
    """Two batches; an output is the batch times the number in the rival's name."""

    def __init__(self):
        self.calls = []

    def line_up(self, entries, full):
        raise NotImplementedError

    @property
    def batch_count(self):
        return 2

    def batches(self):
        return iter([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])

    def run(self, rival, batch):
        self.calls.append((rival.name, len(batch)))
        return batch * int(rival.name), None

    def keep(self, rival, batch, outputs):
        return outputs + 0.5

    def warm_up(self, rivals):
        self.calls.append(("warm", len(rivals)))

    def rows(self, rivals, runs):
        raise NotImplementedError

    def facts(self, entries, full, runs):
        raise NotImplementedError


def rivals():
    net, other = nn.Identity(), nn.Identity()
    return [
        Rival("1", "full", net),
        Rival("2", "network", other),
        Rival("3", "network", other),
    ]


def test_batches_are_joined_and_equal_work_is_done_once():
    on = Numbers()
    runs = run_all(rivals(), on, None, progress=False)
    assert on.calls == [("warm", 2), ("1", 2), ("2", 2), ("2", 1), ("1", 1)]
    assert runs.outputs["1"].tolist() == [1.5, 2.5, 3.5]
    assert runs.outputs["2"].tolist() == runs.outputs["3"].tolist() == [2.5, 4.5, 6.5]
    assert runs.clock("3", "1") == runs.clock("2", "1") and runs.clock("1", "1").median == 1


def test_repeats_are_for_the_clock_alone():
    on = Numbers()
    runs = run_all(rivals()[:1], on, 3, progress=False)
    assert runs.outputs["1"].tolist() == [1.5, 2.5, 3.5]
    assert len(runs.watch.seconds["1"]) == 6


def test_another_policy_or_number_of_steps_is_other_work():
    net = nn.Identity()
    a, b = Rival("1", "policy", net, NeverExit()), Rival("2", "policy", net)
    assert not a.runs_like(b) and a.runs_like(Rival("3", "policy", net, NeverExit()))
    assert not a.runs_like(Rival("4", "policy", net, NeverExit(), steps=3))


@pytest.mark.parametrize("repeats", [None, 3])
def test_progress_tells_how_far_of_how_much(
    repeats: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    on = Numbers()
    run_all(rivals(), on, repeats, progress=True)
    runs = [call for call in on.calls if call[0] != "warm"]
    shown = capsys.readouterr().err.strip()
    assert f"| {len(runs)}/{len(runs)} [" in shown and shown.startswith("compare:   0%")
