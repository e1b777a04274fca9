"""Trains the exits of a reference network: `python -m examples.reproduction.models.train_exits uvit paper`.

With `exitkit.fit` and its default recipe, on the digits of the training part. A run that was stopped
is taken up again, and ends as if it had not been. In its folder remain `log.txt` and `final/`: heads
(and the backbone, where it was trained) in float16, `settings.json` with what made them and what they do
on held-out digits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import exitkit as ek
from exitkit.benchmark import METHODS, Exits
from exitkit.config import LossConfig, OutputConfig
from exitkit.heads import UncertaintyHead
from exitkit.persistence.weights import sum_of
from exitkit.training import Checkpoints, Optimizer
from exitkit.training.settings import Record

from ..small.variants import ABLATIONS
from .held_out import held_out, line
from .suites import BY_NAME
from .training_batches import TrainingBatches

BARE = Exits(
    "bare",
    "paper",
    "data",
    {
        "exits": (-1,),
        "output": OutputConfig(kind="shared"),
        "loss": LossConfig(train_backbone=True, layer_weight=0.0, uncertainty_weight=0.0),
    },
)
"""The control: the network alone, trained on for as long; nothing comes from its exit."""
EXITS = {
    exits.name: exits
    for exits in (*(m.exits for m in (*METHODS, *ABLATIONS) if m.exits.fit == "data"), BARE)
}
"""What can be trained, by name: presets, the ablations of the article's loss, and the control."""


class Training:
    """One training.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.suite = BY_NAME[args.network]()
        self.folder: Path = args.folder or Path("runs/exits") / f"{args.network}_{args.preset}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line and adds it to the log."""
        print(f"{self.folder.name}: {text}", flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(text + "\n")

    def wrapped(self) -> ek.ExitModel:
        """The network with new exits, on the device."""
        args, config = self.args, EXITS[self.args.preset].resolved()
        torch.manual_seed(args.seed)
        # Wrapped on the CPU, so that new heads are the same on every device.
        model = ek.wrap(self.suite.backbone(), config, example_inputs=self.suite.example_inputs)
        assert isinstance(model, ek.ExitModel)
        if args.u_start is not None:
            start = torch.tensor(args.u_start).logit().item()
            for head in model.heads.modules():
                if isinstance(head, UncertaintyHead):
                    nn.init.constant_(head.linear.bias, start)
        return model.to(args.device)

    def optimizer(self) -> Optimizer:
        """The default recipe, with what the command line changes."""
        args = self.args
        named = ("lr", "head_lr", "head_steps", "weight_decay", "schedule", "warmup", "kernels")
        given = {n: getattr(args, n) for n in named if getattr(args, n) is not None}
        if args.matrices is not None:
            given["matrices"] = None if args.matrices == "adamw" else args.matrices
        return Optimizer(**given)

    def run(self) -> None:
        """Trains to the end and writes `final/`."""
        args = self.args
        model, optimizer = self.wrapped(), self.optimizer()
        whole = model.exit_config.loss.train_backbone
        self.say(f"# {args.network} {args.preset} {optimizer.filled(whole)}")
        self.say(f"step=0 held_out {line(held_out(model, self.suite))}")

        def log(record: Record) -> None:
            shown = " ".join(f"{n}={v:.4g}" for n, v in record.items() if n != "step")
            seconds = time.monotonic() - self.began
            self.say(f"step={record['step']:.0f} seconds={seconds:.1f} {shown}")

        result = ek.fit(
            model,
            TrainingBatches(args.network, args.batch, args.device),
            self.suite.task,
            steps=args.steps,
            optimizer=optimizer,
            checkpoints=Checkpoints(self.folder / "checkpoints", args.checkpoint_every),
            ema=args.ema,
            seed=args.seed,
            progress=False,
            callback=log,
        )
        self.say(f"# {result.seconds:.1f} s, {1000 * result.seconds / args.steps:.1f} ms a step")
        model.to("cpu")
        self.finish(model, optimizer.filled(whole), result.seconds)

    def finish(self, model: ek.ExitModel, optimizer: Optimizer, seconds: float) -> None:
        """Writes the averaged weights in float16, what made them, and what they do."""
        args, final = self.args, self.folder / "final"
        partial = self.folder / f"final.{os.getpid()}.partial"
        kept = [model.heads, *([model.backbone] if model.exit_config.loss.train_backbone else [])]
        with torch.no_grad():
            for parameter in (p for module in kept for p in module.parameters()):
                parameter.copy_(parameter.half())
        figures = held_out(model, self.suite)
        model.save_pretrained(partial)
        halve(partial)
        told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        described: dict[str, Any] = {
            "arguments": {k: v for k, v in told.items() if v is not None and k != "folder"},
            "optimizer": asdict(optimizer),
            "exits": [e.path for e in model.exits],
            "costs": [round(e.cost, 6) for e in model.exits],
            "held_out": figures,
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.machine(),
        }
        (partial / "settings.json").write_text(json.dumps(described, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.say(f"step={args.steps} held_out {line(figures)}")


def halve(folder: Path) -> None:
    """Rewrites the weights of a folder of exits in float16; loading casts back."""
    settings = folder / "exitkit.json"
    told = json.loads(settings.read_text())
    for path in folder.glob("*.safetensors"):
        state = load_file(path)
        save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, path)
        path.chmod(0o644)  # safetensors makes its files private to their owner
        told["sums"][path.name] = sum_of(path)
    settings.write_text(json.dumps(told, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line; what is left out is the default of `fit`."""
    root = argparse.ArgumentParser(
        prog="python -m examples.reproduction.models.train_exits",
        description=__doc__.split("\n")[0],
    )
    root.add_argument("network", choices=list(BY_NAME))
    root.add_argument("preset", choices=list(EXITS))
    root.add_argument("--steps", type=int, default=1800)
    root.add_argument("--batch", type=int, default=64)
    root.add_argument("--seed", type=int, default=0)
    root.add_argument("--device", default="cpu")
    root.add_argument("--ema", type=float, default=0.998)
    root.add_argument("--lr", type=float)
    root.add_argument("--head-lr", type=float)
    root.add_argument("--head-steps", type=int, help="steps of the heads alone before the others")
    root.add_argument("--weight-decay", type=float)
    root.add_argument("--warmup", type=int)
    root.add_argument("--schedule", choices=("constant", "linear", "cosine"))
    root.add_argument("--matrices", choices=("auto", "muon", "adamw"))
    root.add_argument("--kernels", action="store_true", default=None)
    root.add_argument("--u-start", type=float, help="uncertainty that new heads begin with")
    root.add_argument("--checkpoint-every", type=int, default=100)
    root.add_argument("--folder", type=Path, help="runs/exits/<network>_<preset> if left out")
    return root


def main() -> None:
    """Runs the training that the command line names."""
    training = Training(parser().parse_args())
    if (training.folder / "final").is_dir():
        print(f"{training.folder}: done before")
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    training.run()


if __name__ == "__main__":
    main()
