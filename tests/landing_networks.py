"""Small networks, one for each way in which stages can read each other and a tail can read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitkit.execution.executor import Executor
from exitkit.model import ExitModel
from exitkit.policies import FixedExit, NeverExit

TIMES = torch.tensor([700.0, 400.0, 90.0])
IMAGE, TOKENS = (3, 16, 16), (8, 16)


def example(shape: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three rows and their timesteps."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed)), TIMES.clone()


class Convs(nn.Module):
    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(given, made, 3, padding=1), nn.Conv2d(made, made, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class UNet(nn.Module):
    """Skips joined by `cat`, `slice` (half a skip, twice), `add`, or `scaled` (normed, added, scaled)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        wide = 2 if how in ("cat", "slice") else 1
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.down = nn.ModuleList([Convs(8, 8), Convs(8, 16), Convs(16, 16)])
        self.mid = Convs(16, 16)
        self.up = nn.ModuleList([Convs(16 * wide, 16), Convs(16 * wide, 8), Convs(8 * wide, 8)])
        if how == "scaled":
            self.norms = nn.ModuleList([nn.GroupNorm(2, c) for c in (16, 16, 8)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        skips, x = [], self.stem(x) + t.view(-1, 1, 1, 1) / 1000
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = self.mid(x)
        for i, stage in enumerate(self.up):
            x, skip = x if i == 0 else F.interpolate(x, scale_factor=2), skips.pop()
            if self.how == "cat":
                x = torch.cat([x, skip], 1)
            elif self.how == "slice":
                x = torch.cat([x, skip[:, : skip.shape[1] // 2].repeat(1, 2, 1, 1)], 1)
            elif self.how == "add":
                x = x + skip
            else:
                x = (x + self.norms[i](skip)) / 2**0.5
            x = stage(x)
        return self.out(x)


class Attention(nn.Module):
    def __init__(self, normed: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16) if normed else nn.Identity()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Mlp(nn.Sequential):
    def __init__(self, normed: bool = True) -> None:
        norm = nn.LayerNorm(16) if normed else nn.Identity()
        super().__init__(norm, nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


class Outside(nn.Module):
    """`x = attn(x) + x; x = ff(x) + x`: the caller adds, the output as it is or times `scale`.

    With `apart` the norm in front of each is a call of its own, so that what is added to entered a call
    before; with `last` the last feed-forward network alone is not added to anything.
    """

    def __init__(self, scale: float = 1.0, apart: bool = False, last: bool = True) -> None:
        super().__init__()
        self.scale, self.last = scale, last
        parts = [Attention(not apart), Mlp(not apart)]
        self.layers = nn.ModuleList()
        for _ in range(5):
            parts = [Attention(not apart), Mlp(not apart)]
            if apart:
                parts = [nn.LayerNorm(16), parts[0], nn.LayerNorm(16), parts[1]]
            self.layers.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))

    def stream(self, x: Tensor, t: Tensor, depth: int = 5) -> Tensor:
        x = x + t[:, None, None] / 1000
        for i, parts in enumerate(self.layers[:depth]):
            half = len(parts) // 2
            for part in (parts[:half], parts[half:]):
                h = x
                for module in part:
                    h = module(h)
                added = self.last or i + 1 < len(self.layers) or part[0] is parts[0]
                x = x + self.scale * h if added else h
        return x

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.stream(x, t))

    def passed(self, x: Tensor, t: Tensor, depth: int) -> Tensor:
        """The network with all blocks behind a depth passed over."""
        return self.out(self.stream(x, t, depth))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, skip = torch.tanh(self.linear(x)).chunk(2, -1)
        return (x + kept) / 2**0.5, skip


class WaveNet(nn.Module):
    """The tail reads the `sum` of what the layers put aside, their `mean`, or them side by `cat`."""

    def __init__(self, how: str = "sum", depth: int = 5) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Linear(16, 16)
        self.layers = nn.ModuleList([Layer() for _ in range(depth)])
        self.weights = nn.Parameter(torch.rand(depth))
        self.out = nn.Linear(16 * depth if how == "cat" else 16, 16)

    def skips(self, x: Tensor, t: Tensor, depth: int | None = None) -> list[Tensor]:
        x, skips = self.stem(x) + t[:, None, None] / 1000, []
        for layer in self.layers[:depth]:
            x, skip = layer(x)
            skips.append(skip)
        return skips

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        skips = self.skips(x, t)
        if self.how == "cat":
            return self.out(torch.cat(skips, -1))
        if self.how == "learned":
            skips = [w * s for w, s in zip(self.weights, skips, strict=True)]
        return self.out(torch.stack(skips).sum(0) / len(self.layers) ** 0.5)

    def passed(self, x: Tensor, t: Tensor, depth: int) -> Tensor:
        """The tail on the sum of the first layers alone."""
        skips = self.skips(x, t, depth)
        return self.out(torch.stack(skips).sum(0) / len(self.layers) ** 0.5)


class Dual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        mean = image.mean(1, keepdim=True) - text.mean(1, keepdim=True)
        return image + torch.tanh(self.a(image + mean)), text + torch.tanh(self.b(text - mean))


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.a(x + x.mean(1, keepdim=True)))


class DualStream(nn.Module):
    """Two streams that are one behind the third stage."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.out = nn.Linear(16, 32), nn.Linear(12, 32), nn.Linear(32, 16)
        self.pairs = nn.ModuleList([Dual() for _ in range(3)])
        self.blocks = nn.ModuleList([Single() for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, y = self.image(x) + t[:, None, None] / 1000, self.text(y)
        for block in self.pairs:
            x, y = block(x, y)
        h = torch.cat([y, x], 1)
        for block in self.blocks:
            h = block(h)
        return self.out(h[:, y.shape[1] :])


class FusedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.audio = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        told = audio.mean(1, keepdim=True) + x.mean(1, keepdim=True)
        return x + torch.tanh(self.image(x + told)), audio + torch.tanh(self.audio(audio + told))


class Fused(nn.Module):
    """Images with their sound, as Kandinsky 6: the tail reshapes the image and takes the sound as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([FusedBlock() for _ in range(4)])
        self.out, self.audio_out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, t: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        h = x.flatten(1, 2) + t[:, None, None] / 1000
        for block in self.blocks:
            h, audio = block(h, audio)
        return self.out(h.reshape(x.shape)), self.audio_out(audio)


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        full = x + torch.tanh(self.conv(x))
        half = self.down(full)
        return half, [full, half]


class Encoder(nn.Module):
    """Blocks halve the image and give what they had before, too, which nobody reads (MONAI's encoder)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Linear(32, 3)
        self.blocks = nn.ModuleList([Halving() for _ in range(3)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t.view(-1, 1, 1, 1) / 1000
        for block in self.blocks:
            h, _ = block(h)
        return self.out(h.reshape(len(h), -1))


class Refolding(nn.Module):
    """Blocks over space and over time in turn: rows are folded one way, then the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(16, 32), nn.Linear(32, 16)
        self.blocks = nn.ModuleList([Single() for _ in range(6)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, f, n, _ = x.shape
        x = (self.stem(x) + t[:, None, None, None] / 1000).reshape(b * f, n, 32)
        for space, time in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = space(x).reshape(b, f, n, 32).transpose(1, 2).reshape(b * n, f, 32)
            x = time(x).reshape(b, n, f, 32).transpose(1, 2).reshape(b * f, n, 32)
        return self.out(x).reshape(b, f, n, 16)


class Chain(nn.Module):
    """Plain residual blocks; `variant` disturbs what experiments rest on."""

    def __init__(self, variant: str = "", depth: int = 5) -> None:
        super().__init__()
        self.variant = variant
        self.stem, self.out = nn.Linear(16, 32), nn.Linear(32, 16)
        self.blocks = nn.ModuleList([Single() for _ in range(depth)])
        if variant == "zero tail":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x) + t[:, None, None] / 1000
        if self.variant == "positive":
            x = x.abs() + 6  # no block takes more than one off
        for block in self.blocks:
            if self.variant == "draws":
                x = x + 4e-4 * torch.randn_like(x)
            x = block(x)
            if self.variant == "positive" and bool((x <= 0).any()):
                raise ValueError("a negative scale")
        return self.out(x)


def gaps(model: ExitModel, inputs: Sequence[Tensor]) -> list[float]:
    """How far each exit is from the full output when a step is repeated exactly, in its std.

    What the passed-over blocks would hand on is what they handed on a step before, so a landing that is
    right gives the full output.
    """
    x, t, *rest = inputs
    found = []
    with torch.no_grad():
        full = model.backbone(*inputs)
        for depth in range(1, len(model.exits) + 1):
            with model.trajectory() as trajectory:
                for policy, earlier in ((NeverExit(), 1), (NeverExit(), 0), (FixedExit(depth), 0)):
                    trajectory.next_step()
                    model.policy = policy
                    out = model(x * (1 - 0.1 * earlier), t + earlier, *rest)
                assert model.trace.calls[-1].depth.tolist() == [depth] * len(x)
            found.append(float((out - full).abs().max() / full.std()))
    return found


def landings(model: ExitModel) -> list[int | None]:
    """Where the rows of each exit land."""
    executor: Executor = model._executor
    return [point.landing for point in executor.layout.points]


class Conv(nn.Module):
    """Residual convolutions over one, two or three axes, as many channels as one of them is long."""

    def __init__(self, axes: int, channels: int = 16) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.stem, self.out = kind(3, channels, 1), kind(channels, 3, 1)
        self.blocks = nn.ModuleList(kind(channels, channels, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x) + t.view(-1, *[1] * (x.ndim - 1)) / 1000
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.out(x)
