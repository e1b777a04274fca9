"""U-ViT, a vision transformer with long skip connections for diffusion (arXiv 2209.12152).

Written from the paper, with the parameter names and tensor layouts of the published checkpoints,
so that their state dicts load unchanged, those of the text-to-image variant too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .uvit_configs import UViTConfig as UViTConfig
from .uvit_configs import uvit_large_imagenet256 as uvit_large_imagenet256
from .uvit_configs import uvit_mnist as uvit_mnist
from .uvit_configs import uvit_mnist_small as uvit_mnist_small
from .uvit_configs import uvit_small_celeba64 as uvit_small_celeba64
from .uvit_configs import uvit_small_cifar10 as uvit_small_cifar10
from .uvit_configs import uvit_small_coco256 as uvit_small_coco256


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of timesteps, cosines first.

    Args:
        timesteps: (B,), integer or fractional.
        dim: Width of the embedding; an odd width is padded with one zero.
        max_period: Slowest period over 2 pi.

    Returns:
        (B, dim), float32.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) / half * index)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def unpatchify(tokens: Tensor, channels: int) -> Tensor:
    """Lays patch tokens out as an image: 'B (h w) (p1 p2 C) -> B C (h p1) (w p2)'.

    Args:
        tokens: (B, h * w, p * p * C) with h == w.
        channels: C.

    Returns:
        (B, C, h * p, w * p).
    """
    batch, count, width = tokens.shape
    side, patch = math.isqrt(count), math.isqrt(width // channels)
    if side * side != count or patch * patch * channels != width:
        raise ValueError(f"{count} tokens of width {width} do not form a square image")
    grid = tokens.reshape(batch, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch, side * patch)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, H / p * W / p, D), row by row."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one fused query/key/value projection."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        batch, length, dim = x.shape
        # The projection's output is ordered (q k v), then heads, then head width.
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(heads.transpose(1, 2).reshape(batch, length, dim))
        return out


class Mlp(nn.Module):
    """Two-layer perceptron with GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block; an out-block first merges a long skip into its input."""

    def __init__(self, config: UViTConfig, skip: bool = False) -> None:
        super().__init__()
        dim = config.embed_dim
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Maps (B, L, D), and for an out-block a skip (B, L, D), to (B, L, D)."""
        if self.skip_linear is not None:
            if skip is None:
                raise ValueError("an out-block needs the output of its in-block as `skip`")
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class UViT(nn.Module):
    """U-ViT noise predictor.

    Tokens are ordered label (if any), time, text (if any), patches. Block i of the first half feeds
    the block at the mirrored place of the second half through a long skip.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, half = config.embed_dim, config.depth // 2
        self.extras = 1 + (config.num_classes > 0)
        if config.clip_dim > 0:
            self.extras += config.num_clip_token
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.time_embed: nn.Module = nn.Identity()
        if config.mlp_time_embed:
            self.time_embed = nn.Sequential(
                nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
            )
        if config.num_classes > 0:
            self.label_emb = nn.Embedding(config.num_classes, dim)
        if config.clip_dim > 0:
            self.context_embed = nn.Linear(config.clip_dim, dim)
        patches = (config.img_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + patches, dim))
        self.in_blocks = nn.ModuleList(Block(config) for _ in range(half))
        self.mid_block = Block(config)
        self.out_blocks = nn.ModuleList(Block(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, config.patch_size**2 * config.in_chans)
        self.final_layer: nn.Module = nn.Identity()
        if config.conv:
            self.final_layer = nn.Conv2d(config.in_chans, config.in_chans, 3, padding=1)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        y: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Predicts the noise in `x`.

        Args:
            x: Noisy images or latents, (B, C, H, W).
            timesteps: (B,), in 0..999 for a 1000-step schedule.
            y: Class labels, (B,) of int64; required exactly if the model has a label table.
            context: Text features, (B, tokens, clip_dim); required exactly if the model reads text.

        Returns:
            (B, C, H, W).
        """
        if (y is None) == (self.config.num_classes > 0):
            raise ValueError("pass `y` to a class-conditional U-ViT and to no other")
        if (context is None) == (self.config.clip_dim > 0):
            raise ValueError("pass `context` to a text-conditional U-ViT and to no other")
        time = timestep_embedding(timesteps, self.config.embed_dim).to(x.dtype)
        tokens = [self.time_embed(time)[:, None], self.patch_embed(x)]
        if y is not None:
            tokens.insert(0, self.label_emb(y)[:, None])
        if context is not None:
            tokens.insert(1, self.context_embed(context))
        x = torch.cat(tokens, dim=1) + self.pos_embed
        skips: list[Tensor] = []
        for blk in self.in_blocks:
            x = blk(x)
            skips.append(x)
        x = self.mid_block(x)
        for blk in self.out_blocks:
            x = blk(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, self.extras :]
        out: Tensor = self.final_layer(unpatchify(x, self.config.in_chans))
        return out


def _init_linear(module: nn.Module) -> None:
    """Initialises linear layers as the paper's code does; other layers keep torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
