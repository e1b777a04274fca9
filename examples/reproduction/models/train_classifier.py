"""Training of the digit classifier."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Ema, RunLog, save_weights
from .classifier import DigitClassifier
from .digits import load_digits

NAME = "digit_classifier"
LOG_EVERY = 50
TEST_EVERY = 250
MAX_SHIFT = 2


def shifted(images: Tensor) -> Tensor:
    """Moves each image (B, 1, 32, 32) by up to two pixels; the margin of a digit is wider."""
    shifts = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (len(images), 2)).tolist()
    moved = [image.roll((dy, dx), (-2, -1)) for image, (dy, dx) in zip(images, shifts, strict=True)]
    return torch.stack(moved)


@torch.no_grad()
def held_out_scores(ema: Ema, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross entropy and accuracy of the averaged weights."""
    judge = DigitClassifier().eval()
    judge.load_state_dict(ema.state)
    logits = judge(images)
    correct = (logits.argmax(dim=1) == labels).float().mean()
    return F.cross_entropy(logits, labels).item(), correct.item()


def train_classifier(steps: int, batch: int, seed: int) -> None:
    """Trains the classifier for `steps` steps and writes weights, log and loss plot."""
    torch.manual_seed(seed)
    digits = load_digits()
    model = DigitClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = Ema(model, decay=0.99)
    log = RunLog(NAME)
    parameters = sum(p.numel() for p in model.parameters())
    log.line(f"# {NAME} parameters={parameters} batch={batch}")
    start, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        chosen = torch.randint(len(digits.train_labels), (batch,))
        logits = model(shifted(digits.train_images[chosen]))
        loss = F.cross_entropy(logits, digits.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        ema.update(model)
        losses.append(loss.item())
        if step % LOG_EVERY == 0:
            mean = sum(losses) / len(losses)
            log.line(f"step={step} loss={mean:.4f} seconds={time.monotonic() - start:.0f}")
            losses = []
        if step % TEST_EVERY == 0 or step == steps:
            entropy, accuracy = held_out_scores(ema, digits.held_out_images, digits.held_out_labels)
            log.line(f"step={step} held_out={entropy:.4f} accuracy={accuracy:.4f}")
    config = {"num_features": model.num_features, "classes": 10}
    save_weights(NAME, ema.state, config, steps)
    log.plot()
