"""Completion by hand: one row, lists of full steps, noise levels from the betas. Knows no exitkit."""

import math

import torch

KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32), 0).double()


def levels(t):
    """Shares of signal and noise, and their log-ratio, at a whole timestep."""
    signal, noise = math.sqrt(KEPT[int(t)]), math.sqrt(1 - KEPT[int(t)])
    return signal, noise, math.log(signal / noise)


def clean(x, noise, t):
    signal, share, _ = levels(t)
    return (x - share * noise) / signal


def line(steps, t):
    """The noise on the line through the last two of (t, x, noise), oldest first."""
    (t2, _, e2), (t1, _, e1) = steps[-2:]
    return e1 + (t - t1) / (t1 - t2) * (e1 - e2)


def columns(x, t, steps, forecast=None):
    """What the six scalars multiply; `steps` hold this one if it is full."""
    found = [(levels(s)[2], clean(given, noise, s)) for s, given, noise in steps[-3:]]
    guess = torch.zeros_like(x) if forecast is None else clean(x, forecast, t)
    slopes = [torch.zeros_like(x), torch.zeros_like(x)]
    for back in (1, 2):
        if len(found) > back:
            (old_l, old), (new_l, new) = found[-back - 1], found[-back]
            slopes[back - 1] = (new - old) / (new_l - old_l)
    return [x, found[-1][1], guess, *slopes, torch.ones_like(x)]


class Row:
    """One row of one branch: runs or forecasts, then moves by scalars `{(t, full): six numbers}`."""

    def __init__(self, net, scalars):
        self.net, self.scalars, self.steps = net, scalars, []

    def __call__(self, x, t, wants_full):
        full = wants_full or len(self.steps) < 2
        if full:
            made = self.net(x, torch.full((1,), float(t)))
            self.steps.append((t, x, made))
            parts = columns(x, t, self.steps)
        else:
            made = line(self.steps, t)
            parts = columns(x, t, self.steps, made)
        numbers = self.scalars[t, full]
        return made + sum(c * p for c, p in zip(numbers, parts, strict=True)), full
