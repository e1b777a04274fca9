"""Trains a network: `python -m examples.reproduction.models.train {uvit,unet,dit,pixart,...}`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint import Ema, RunLog, save_weights
from .digits import Digits, load_digits
from .kinds import KINDS, Kind
from .models import scheduler
from .train_classifier import train_classifier

BINS = 10
CHECKPOINT_EVERY = 500
LOG_EVERY = 50


def prediction(output: Any) -> Tensor:
    """The noise in a model's output, which diffusers' models wrap in a dataclass."""
    noise: Tensor = output if isinstance(output, Tensor) else output.sample
    return noise


@torch.no_grad()
def held_out_losses(
    kind: Kind, model: nn.Module, ema: Ema, digits: Digits, noises: DDPMScheduler
) -> Tensor:
    """Mean squared error of the averaged weights on fixed noise, by tenth of the schedule.

    Args:
        kind: What model it is.
        model: The noise predictor, for its structure; its own weights are not used.
        ema: The weights to judge.
        digits: Its held-out part is used.
        noises: The noise schedule.

    Returns:
        (BINS,), the lowest timesteps first.
    """
    generator = torch.Generator().manual_seed(1)
    images, labels = digits.held_out_images, digits.held_out_labels
    noise = torch.randn(images.shape, generator=generator)
    # Evenly spread timesteps; the images come shuffled, so a bin holds digits of all classes.
    timesteps = torch.linspace(0, 999, len(images)).long()
    errors: list[Tensor] = []
    model.eval()

    def averaged(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, ema.state, args, kwargs)

    for part in (slice(first, first + 100) for first in range(0, len(images), 100)):
        noisy = noises.add_noise(images[part], noise[part], timesteps[part])
        conditions = kind.condition(images[part], labels[part])
        output = _call(averaged, noisy, timesteps[part], conditions)
        errors.append((prediction(output) - noise[part]).square().mean(dim=(1, 2, 3)))
    model.train()
    return torch.cat(errors).reshape(BINS, -1).mean(dim=1)


def optimizers(kind: Kind, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a transformer's blocks, AdamW for all other parameters.

    Args:
        kind: Says which matrices; without any, AdamW trains everything.
        model: The model.
        lr: Learning rate; Muon's is scaled to the size that AdamW's updates have.
    """
    matrices = kind.matrices(model)
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    others = torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    if not matrices:
        return [others]
    muon = torch.optim.Muon(
        matrices, lr=2.5 * lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, others]


def _call(model: Callable[..., Any], noisy: Tensor, t: Tensor, conditions: dict[str, Any]) -> Any:
    """diffusers' transformers take the timestep third or by name, the others second."""
    if conditions:
        return model(noisy, timestep=t, **conditions)
    return model(noisy, t.float())


def noise_loss(
    model: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Any], noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise; matrices in bfloat16, which halves the time."""
    # The fused attention of processors is slow in bfloat16, backwards most of all.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        output = prediction(_call(model, noisy, timesteps, conditions))
    return F.mse_loss(output.float(), noise)


def train_diffusion(args: argparse.Namespace) -> None:
    """Trains a noise predictor until `args.steps` steps or `args.max_seconds` seconds."""
    torch.manual_seed(args.seed)
    kind, name = KINDS[args.model], f"{args.model}_mnist"
    digits, noises = load_digits(), scheduler()
    model, config = kind.build()
    model.train()
    trained_by = optimizers(kind, model, args.lr)
    rates = [group["lr"] for optimizer in trained_by for group in optimizer.param_groups]

    def rate(n: int) -> float:
        """Warm-up over 50 steps, constant, and a linear end over the last `cooldown` steps."""
        return min(1.0, (n + 1) / 50, (args.steps - n) / args.cooldown if args.cooldown else 1.0)

    ema = Ema(model)
    resume_path = Path("runs") / name / "checkpoint.pt"
    step, spent = 0, 0.0
    if args.resume:
        # A file of this script's own making, never downloaded; optimizer states are nested and do not
        # fit into safetensors. `weights_only` unpickles tensors and plain values alone.
        saved = torch.load(resume_path, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(trained_by, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        ema.state, ema.updates = saved["ema"], saved["step"]
        step, spent = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["rng"])
    log = RunLog(name, resume=args.resume)
    parameters = sum(p.numel() for p in model.parameters())
    log.line(f"# {name} parameters={parameters} batch={args.batch} lr={args.lr} from_step={step}")
    start, losses = time.monotonic() - spent, []

    def checkpoint() -> None:
        seconds = time.monotonic() - start
        bins = held_out_losses(kind, model, ema, digits, noises)
        listed = ",".join(f"{value:.4f}" for value in bins.tolist())
        log.line(f"step={step} held_out={bins.mean():.4f} seconds={seconds:.0f} bins={listed}")
        resume_path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trained_by],
            "ema": ema.state,
            "step": step,
            "seconds": seconds,
            "rng": torch.get_rng_state(),
        }
        torch.save(state, resume_path)
        halved = {n: v.half() if v.is_floating_point() else v for n, v in ema.state.items()}
        save_weights(name, halved if kind.half else ema.state, config, step)

    count = len(digits.train_images)
    while step < args.steps and time.monotonic() - start < args.max_seconds:
        rows = torch.randint(count, (args.batch,))
        images = digits.train_images[rows]
        timesteps = torch.randint(1000, (args.batch,))
        noise = torch.randn_like(images)
        noisy = noises.add_noise(images, noise, timesteps)
        conditions = kind.condition(images, digits.train_labels[rows])
        loss = noise_loss(model, noisy, timesteps, conditions, noise)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        groups = [group for optimizer in trained_by for group in optimizer.param_groups]
        for group, peak in zip(groups, rates, strict=True):
            group["lr"] = peak * rate(step)
        for optimizer in trained_by:
            optimizer.step()
        ema.update(model)
        step += 1
        losses.append(loss.item())
        if step % LOG_EVERY == 0:
            mean = sum(losses) / len(losses)
            log.line(f"step={step} loss={mean:.4f} seconds={time.monotonic() - start:.0f}")
            losses = []
        if step % CHECKPOINT_EVERY == 0:
            checkpoint()
    if step % CHECKPOINT_EVERY:
        checkpoint()
    log.plot()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m examples.reproduction.models.train", description=__doc__
    )
    root.add_argument("model", choices=[*KINDS, "classifier"])
    root.add_argument("--steps", type=int, default=3600)
    root.add_argument("--batch", type=int, default=64)
    root.add_argument("--lr", type=float, default=2e-3)
    root.add_argument("--seed", type=int, default=0)
    root.add_argument("--max-seconds", type=float, default=float("inf"))
    root.add_argument("--cooldown", type=int, default=0, help="last steps: rate falls to 0")
    root.add_argument("--resume", action="store_true", help="go on from runs/<name>/checkpoint.pt")
    root.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves the default")
    return root


def main() -> None:
    """Runs the training that the command line names."""
    args = parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.model == "classifier":
        train_classifier(args.steps, args.batch, args.seed)
    else:
        train_diffusion(args)


if __name__ == "__main__":
    main()
