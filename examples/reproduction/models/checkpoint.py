"""What a training run leaves behind: averaged weights, a resumable state, a log and a plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent


class Ema:
    """Exponential moving average of a model's state, with a shorter memory at the start.

    Attributes:
        state: The average, under the names of the model's state dict.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's current state."""
        self.updates += 1
        # Without the cap, the random initial weights would linger for thousands of steps.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            average = self.state[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)


def save_weights(name: str, state: dict[str, Tensor], config: dict[str, Any], step: int) -> Path:
    """Writes weights/<name>.safetensors with the configuration and the step as metadata."""
    path = HERE / "weights" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    metadata = {"config": json.dumps(config), "steps": str(step)}
    # A reader may open the file at any time, so it is replaced in one go.
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in state.items()}, partial, metadata)
    partial.chmod(0o644)  # safetensors makes it private to its owner
    partial.replace(path)
    return path


class RunLog:
    """Prints lines and appends them to logs/<name>.log."""

    def __init__(self, name: str, resume: bool = False) -> None:
        self.path = HERE / "logs" / f"{name}.log"
        self.path.parent.mkdir(exist_ok=True)
        if not resume:
            self.path.write_text("")

    def line(self, text: str) -> None:
        """Adds one line."""
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Steps and values of every line that carries `field=`."""
        pattern = re.compile(rf"step=(\d+).* {re.escape(field)}=([\d.]+)")
        found = [m for m in map(pattern.search, self.path.read_text().splitlines()) if m]
        return [int(m[1]) for m in found], [float(m[2]) for m in found]

    def plot(self) -> None:
        """Draws the training and the held-out loss to logs/<name>_loss.png."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*self.series("loss"), label="training", linewidth=1)
        axes.plot(*self.series("held_out"), label="held out (averaged weights)", marker=".")
        axes.set(xlabel="step", ylabel="loss", yscale="log", title=self.path.stem)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(self.path.with_name(f"{self.path.stem}_loss.png"), dpi=110)
        pyplot.close(figure)
