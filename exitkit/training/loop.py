"""The loop of a fit: steps, averages, snapshots, checkpoints."""

from __future__ import annotations

import importlib
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from exitkit.errors import CheckpointError, NonFiniteError
from exitkit.model import ExitModel
from exitkit.training import checkpoints
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss
from exitkit.training.objective import Objective
from exitkit.training.seeds import derive, seed_everything
from exitkit.training.settings import FitResult, Record, Settings
from exitkit.training.streams import Stream


@dataclass
class Loop:
    """Fits the trained parameters of a model; made and run by `fit`.

    Attributes:
        model: The wrapped model.
        loss: The loss.
        stream: The items.
        accelerator: The accelerator.
        settings: The settings.
        trained: The trained parameters, by name.
        buffers: Buffers that training changes, by name.
        identity: What must be the same when a run is taken up.
    """

    model: ExitModel
    loss: ExitLoss | CarriedLoss
    stream: Stream
    accelerator: Any
    settings: Settings
    trained: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    identity: dict[str, Any]
    done: int = 0
    history: list[Record] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    start: Record = field(default_factory=dict)

    def run(self) -> FitResult:
        """Runs the remaining steps.

        Returns:
            What was done; the model then holds the averaged weights.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite; the model holds the last snapshot.
            CheckpointError: If the checkpoint to go on from is damaged or of another run.
        """
        settings, started = self.settings, time.perf_counter()
        optimizer = self._optimizer()
        self._listed = nn.ParameterList(self.trained.values())
        self.average = self._average(settings.ema) if settings.ema else None
        objective = Objective(self.model, self.loss)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        # After accelerate, which may put other groups in place.
        self.schedule = settings.optimizer.make_schedule(self.optimizer, settings.steps)
        folder = settings.checkpoints.path
        if settings.checkpoints.resume and folder is not None:
            self._resume(folder)
        self.snapshot, self.snapshot_step = self._weights(), self.done
        shown = settings.progress and self.accelerator.is_main_process
        bar = tqdm(total=settings.steps, initial=self.done, disable=not shown, desc="fit")
        try:
            with bar:
                while self.done < settings.steps:
                    self._book(self._step(self.done), bar)
        except NonFiniteError as error:
            self._put(self.snapshot)
            where = f"The last checkpoint is {self.checkpoint}."
            if self.checkpoint is None:
                where = "There is no checkpoint; checkpoints=Checkpoints(folder) keeps some."
            raise NonFiniteError(
                f"fit: step {self.done + 1} of {settings.steps}: {error} The model holds the "
                f"weights of step {self.snapshot_step}. {where}"
            ) from error
        except KeyboardInterrupt:
            self._put(self._weights())
            raise
        self._put(self._weights())
        seconds = time.perf_counter() - started
        history = tuple(self.history)
        return FitResult(history, self.done, seconds, self.checkpoint, start=self.start)

    def _optimizer(self) -> torch.optim.Optimizer:
        calls = [call for stage in self.model.plan.stages for call in stage.calls]
        blocks = tuple(f"backbone.{call.path}." for call in calls)
        return self.settings.optimizer.make(self.trained, blocks)

    def _average(self, decay: float) -> Any:
        """The moving average of the trained parameters; its decay grows with the steps."""
        utils: Any = importlib.import_module("timm.utils")
        # Half precision cannot hold an average that moves by a thousandth a step.
        narrow = any(p.dtype.itemsize < 4 for p in self.trained.values())
        dtype = torch.float32 if narrow else None
        return utils.ModelEmaV3(self._listed, decay, use_warmup=True, dtype=dtype)

    def _averages(self) -> dict[str, Tensor]:
        """The averages by name; the parameters themselves if none are kept."""
        if self.average is None:
            return {**self.trained}
        return dict(zip(self.trained, self.average.module.parameters(), strict=True))

    # one step

    def _step(self, step: int) -> Record:
        settings, accelerator = self.settings, self.accelerator
        # timm counts updates from 1: its warm-up begins at zero.
        self.schedule.step_update(step + 1)
        self.optimizer.zero_grad()
        pieces = settings.accumulation
        sums: Record = {}
        for piece in range(pieces):
            number = step * pieces + piece
            item = self.stream.next(number)
            seed_everything(derive(settings.seed, "step", number, accelerator.process_index))
            last = piece == pieces - 1
            with nullcontext() if last else accelerator.no_sync(self.objective):
                parts = self.objective(item, step)
                # accelerate divides by its own number of pieces.
                share = accelerator.gradient_accumulation_steps / pieces
                accelerator.backward(parts["total"] * share)
            found = torch.stack([p.detach().float() for p in parts.values()])
            if accelerator.num_processes > 1:
                found = accelerator.reduce(found, "mean")
            for name, value in zip(parts, found.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value / pieces
        norm = self._clip()
        self.optimizer.step()
        self.done += 1
        if self.average is not None:
            self.average.update(self._listed, self.done)
        return {**sums, "gradient_norm": norm, "lr": self._lr()}

    def _lr(self) -> float:
        """What the schedule has made of the backbone's learning rate."""
        groups = self.optimizer.param_groups
        now, full = (sum(float(group[key]) for group in groups) for key in ("lr", "initial_lr"))
        return self.settings.optimizer.rate("") * now / full if full else 0.0

    def _clip(self) -> float:
        """Clips the gradient; returns its norm before."""
        self.accelerator.unscale_gradients()
        moved = [p for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        # Before clipping, which would spread a NaN to all parameters and hide where it came from.
        # float16 overflows now and then: its scaler skips such a step and lowers the scale.
        if not bool(torch.isfinite(norm)) and self.accelerator.scaler is None:
            raise NonFiniteError(self._gradient_message(float(norm)))
        torch.nn.utils.clip_grads_with_norm_(moved, self.settings.optimizer.clip, norm)
        return float(norm)

    def _gradient_message(self, norm: float) -> str:
        bad = [
            name
            for name, p in self.trained.items()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        listed = f" in {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}" if bad else ""
        return (
            f"The loss is finite, its gradient is not (norm {norm}){listed}. Lower the learning rate "
            "(Optimizer(lr=...)), or use precision='bf16' rather than 'fp16'."
        )

    def _book(self, record: Record, bar: Any) -> None:
        """Logs, and keeps snapshots and checkpoints, after a step."""
        settings = self.settings
        if self.done == 1:
            self.start = dict(record)
        self.window["count"] = self.window.get("count", 0) + 1
        for name, value in record.items():
            self.window[name] = self.window.get(name, 0.0) + value
        bar.update()
        ends = self.done == settings.steps
        if self.done % settings.checkpoints.log_every == 0 or ends:
            count = self.window.pop("count")
            means = {name: value / count for name, value in self.window.items()}
            self.window = {}
            logged: Record = {"step": float(self.done), **means}
            self.history.append(logged)
            bar.set_postfix(loss=f"{means['total']:.4g}", refresh=False)
            self.accelerator.log(means, step=self.done)
            if settings.callback is not None and self.accelerator.is_main_process:
                settings.callback(dict(logged))
        if self.done % settings.checkpoints.every == 0 or ends:
            self.snapshot, self.snapshot_step = self._weights(), self.done
            folder = settings.checkpoints.path
            if folder is not None:
                self._save(folder)

    # weights and checkpoints

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what the model should hold now: the averages, and the buffers."""
        held = {**self._averages(), **self.buffers}
        return {name: tensor.detach().clone() for name, tensor in held.items()}

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in {**self.trained, **self.buffers}.items():
            tensor.copy_(weights[name])

    def _save(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            tensors = {f"weights/{n}": t for n, t in {**self.trained, **self.buffers}.items()}
            if self.average is not None:
                tensors |= {f"average/{n}": t for n, t in self._averages().items()}
            plain: dict[str, dict[str, Any]] = {}
            for name, parameter in self.trained.items():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer/{key}/{name}"] = value
                    else:
                        plain.setdefault(name, {})[key] = value
            # Some optimisers keep numbers beside their settings, such as an estimated rate.
            groups = [
                {key: value for key, value in group.items() if isinstance(value, int | float)}
                for group in self.optimizer.param_groups
            ]
            scaler = self.accelerator.scaler
            state = {
                "step": self.done,
                "data": self.stream.place(),
                "identity": self.identity,
                "history": self.history,
                "window": self.window,
                "optimizer": {"state": plain, "groups": groups},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            self.checkpoint = checkpoints.save(folder, self.done, tensors, state)
        self.accelerator.wait_for_everyone()

    def _resume(self, folder: Path) -> None:
        found = checkpoints.load(folder)
        if found is None:
            return
        mine, theirs = json.loads(json.dumps(self.identity)), found.state["identity"]
        both = {n: (mine.get(n), theirs.get(n)) for n in mine.keys() | theirs.keys()}
        if None in both.get("source", ()):  # data that cannot be known again may be the same
            del both["source"]
        differ = [name for name, (now, was) in both.items() if now != was]
        if differ:
            listed = ", ".join(
                f"{n}={mine.get(n)!r} (was {theirs.get(n)!r})" for n in sorted(differ)
            )
            raise CheckpointError(
                f"{found.path}: belongs to a fit with other settings: {listed}. Pass the same "
                "settings, another folder, or resume=False to start anew."
            )
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
        for name, tensor in found.tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        checkpoints.put({**self.trained, **self.buffers}, parts["weights"], found.path)
        if self.average is not None:
            checkpoints.put(self._averages(), parts["average"], found.path)
        for name, tensor in parts["optimizer"].items():
            key, _, owner = name.partition("/")
            parameter = self.trained[owner]
            # AdamW counts its steps on the CPU, and keeps the rest beside the parameter.
            place = tensor if tensor.dim() == 0 else tensor.to(parameter.device)
            self.optimizer.state[parameter][key] = place
        told = found.state.get("optimizer", {"state": {}, "groups": []})
        for owner, numbers in told["state"].items():
            self.optimizer.state[self.trained[owner]].update(numbers)
        for group, numbers in zip(self.optimizer.param_groups, told["groups"], strict=False):
            group.update(numbers)
        if found.state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.done = int(found.state["step"])
        self.history, self.window = found.state["history"], found.state["window"]
        self.checkpoint = found.path
        self.stream.seek(found.state["data"])
