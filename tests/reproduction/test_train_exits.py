"""The training of all exits: what is listed, what a run leaves, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("mlxtend")

import exitkit as ek
from examples.reproduction.models import (
    captions,
    held_out,
    train_all,
    train_exits,
    training_page,
)
from examples.reproduction.models.suites import BY_NAME
from examples.reproduction.models.training_batches import TrainingBatches
from examples.reproduction.models.trainings import RUNS, Run
from exitkit.training import Optimizer
from exitkit.training.batches import Example

TABLE = load_file(captions.TABLE)


def parsed(*words: str) -> Namespace:
    return train_exits.parser().parse_args([str(word) for word in words])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight held-out digits instead of 500."""
    everything = held_out.held_out_examples

    def some(suite: Any, rows: int = 8) -> Iterator[Example]:
        return islice(everything(suite, rows), 1)

    monkeypatch.setattr(held_out, "held_out_examples", some)


def test_every_training_that_is_listed_can_be_asked_for() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)
    for run in RUNS:
        args = parsed(run.network, run.preset, "--steps", run.steps, *run.options)
        assert args.steps == run.steps
        assert run.name.startswith(run.network)
        folder = Namespace(**{**vars(args), "folder": None})
        assert isinstance(train_exits.Training.optimizer(SimpleNamespace(args=folder)), Optimizer)
    main = [run for run in RUNS if run.group == "main"]
    assert {run.steps for run in main} == {1800} and not any(run.options for run in main)
    with pytest.raises(SystemExit):
        parsed("uvit", "papre")


def test_the_command_line_changes_what_it_names_and_nothing_else() -> None:
    def told(*words: str) -> Optimizer:
        return train_exits.Training.optimizer(SimpleNamespace(args=parsed("uvit", "paper", *words)))

    assert told() == Optimizer()
    assert told("--lr", "2e-4", "--matrices", "adamw") == Optimizer(lr=2e-4, matrices=None)
    assert told("--kernels", "--head-steps", "3") == Optimizer(kernels=True, head_steps=3)


@pytest.mark.parametrize("network", ["uvit", "dit", "pixart"])
def test_batches_are_functions_of_the_seed(network: str) -> None:
    def drawn(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        return next(iter(TrainingBatches(network, 6)))

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first.keys() == again.keys() and first["image"].shape == (6, 1, 32, 32)
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, again[name]) and len(value) == 6
    assert not torch.equal(first["image"], other["image"])


def test_the_table_of_captions_holds_every_caption_of_the_training() -> None:
    known = captions.every_caption()
    assert TABLE["features"].shape == (len(known), captions.TOKENS, captions.WIDTH)
    features, mask = captions.embedded(["", known[7]])
    assert torch.equal(features[1], TABLE["features"][7]) and torch.equal(mask[0], TABLE["mask"][0])
    assert not features[0, 3:].any() and mask[1].sum() > mask[0].sum()


@pytest.mark.usefixtures("few")
def test_figures_of_few_digits_are_those_made_by_hand() -> None:
    suite = BY_NAME["unet"]()
    net = suite.backbone()
    (example,) = held_out.held_out_examples(suite)
    with torch.no_grad():
        full = net(*example.args).sample
    model = ek.wrap(net, "relative", example_inputs=suite.example_inputs)
    assert isinstance(model, ek.ExitModel)
    figures = held_out.held_out(model, SimpleNamespace(sampler=None))
    by_hand = float((full - example.target).square().mean())
    assert figures["full"] == pytest.approx(by_hand, abs=1e-5) and by_hand < 1
    assert len(figures["exits"]) == len(model.exits) == len(figures["u"])
    with torch.no_grad():
        exits = model(*example.args, output_exits=True).exits
    for at, made in enumerate(exits):
        error, gap = (float((made - x).square().mean()) for x in (example.target, full))
        assert figures["exits"][at] == pytest.approx(error, abs=1e-5)
        assert figures["gap"][at] == pytest.approx(gap, abs=1e-5) and gap > 1e-3
    assert f"full={figures['full']:.4f}" in held_out.line(figures)


@pytest.mark.slow
def test_held_out_figures_are_those_of_the_network_itself() -> None:
    """The full output against a call of the network by hand; exits against what they predict."""
    suite = BY_NAME["unet"]()
    net = suite.backbone()
    (example, *rest) = list(islice(held_out.held_out_examples(suite), 5))
    assert len(rest) == 4 and rest[-1].args[1][-1] == 999
    with torch.no_grad():
        by_hand = float((net(*example.args).sample - example.target).square().mean())
    model = ek.wrap(net, "relative", example_inputs=suite.example_inputs)
    assert isinstance(model, ek.ExitModel)
    figures = held_out.held_out(model, SimpleNamespace(sampler=None))
    assert figures["full"] == pytest.approx(0.0223, abs=5e-4), "as models/README.md says"
    assert abs(by_hand - figures["full"]) < 0.05  # the first fifth of the timesteps is the hardest
    assert len(figures["exits"]) == len(model.exits) == len(figures["u"])
    assert "full=0.02" in held_out.line(figures)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_run_leaves_weights_that_load(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("unet", "berxit", "--steps", "3", "--batch", "2", "--warmup", "1", "--folder", folder)
    train_exits.Training(parsed(*words)).run()
    final = folder / "final"
    told = json.loads((final / "settings.json").read_text())
    assert told["arguments"]["steps"] == 3 and told["optimizer"]["matrices"] == "muon"
    states = [load_file(final / f"{part}.safetensors") for part in ("exits", "backbone")]
    assert {t.dtype for state in states for t in state.values()} == {torch.float16, torch.bool}
    suite = BY_NAME["unet"]()
    model = ek.ExitModel.from_pretrained(
        suite.backbone(), final, example_inputs=suite.example_inputs
    )
    assert model.heads.is_fitted and model.heads.uncertainty[0].is_fitted
    assert held_out.held_out(model, suite) == told["held_out"]
    assert not (folder / "checkpoints").exists()
    log = (folder / "log.txt").read_text().splitlines()
    assert log[1].startswith("step=0 held_out") and log[-1].startswith("step=3 held_out")


@pytest.mark.slow  # that a fit goes on where it was stopped: tests/training/test_fit.py
@pytest.mark.usefixtures("few")
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["unet", "relative", "--steps", "4", "--batch", "2", "--checkpoint-every", "2"]
    train_exits.Training(parsed(*words, "--folder", tmp_path / "whole")).run()

    class Stopped(Exception):
        pass

    task, calls = train_exits.BY_NAME["unet"]().task, []
    draw = type(task).draw

    def until(self: Any, batch: Any, generator: Any = None) -> Example:
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return draw(self, batch, generator)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(type(task), "draw", until)
        train_exits.Training(parsed(*words, "--folder", tmp_path / "two")).run()
    assert not (tmp_path / "two" / "final").exists()
    train_exits.Training(parsed(*words, "--folder", tmp_path / "two")).run()
    one, two = (load_file(tmp_path / n / "final" / "exits.safetensors") for n in ("whole", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_runner_leaves_what_is_finished_alone_and_keeps_main_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def process(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        place = Path(command[command.index("--folder") + 1])
        if "calm" not in command:
            (place / "final").mkdir()
            (place / "final" / "settings.json").write_text("{}")
            (place / "log.txt").write_text("log\n")
        return subprocess.CompletedProcess(command, int("calm" in command))

    runs = (
        Run("uvit_paper", "uvit", "paper", 5),
        Run("uvit_calm", "uvit", "calm", 5),
        Run("uvit_paper_7", "uvit", "paper", 7, ("--lr", "1e-3"), "recipe"),
    )
    monkeypatch.setattr(train_all, "RUNS", runs)
    monkeypatch.setattr(train_all, "HERE", tmp_path / "models")
    (tmp_path / "models" / "logs").mkdir(parents=True)
    monkeypatch.setattr(train_all.subprocess, "run", process)
    words = ["train_all", "--folder", str(tmp_path / "runs"), "--keep", "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", words)
    assert train_all.main() == 1, "one failed"
    assert len(asked) == 3 and all("cuda" in command for command in asked)
    assert any(command[-6:-4] == ["--lr", "1e-3"] for command in asked)
    kept = sorted(p.name for p in (tmp_path / "models" / "weights").iterdir())
    assert kept == ["uvit_paper"]
    logs = tmp_path / "models" / "logs"
    assert {p.name for p in logs.iterdir()} == {"uvit_paper.log", "uvit_paper_7.log"}
    assert (logs / "uvit_paper.log").read_text() == "log\n"
    assert train_all.main() == 1
    assert len(asked) == 4, "only what failed is run again"


def test_the_page_is_made_of_the_last_figures_of_finished_runs(tmp_path: Path) -> None:
    begun = "step=0 held_out full=0.0199 exits=1.0,1.0 gap=1\n"
    done = "step=1800 held_out full=0.02 exits=0.04,0.03 gap=1\n"
    (tmp_path / "uvit_paper.log").write_text(begun + done)
    (tmp_path / "dit_paper.log").write_text(begun)
    text = training_page.page(tmp_path)
    assert "| uvit | paper | 1,800 | - | 0.0200 | 0.0400 0.0300 |" in text
    assert "| dit |" not in text and "`dit_paper`" in text
    assert all(title in text for title in training_page.GROUPS.values())
    assert {run.group for run in RUNS} == set(training_page.GROUPS)
