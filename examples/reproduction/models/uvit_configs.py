"""Configuration of a U-ViT, the published ones by name, and that of the shipped model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UViTConfig:
    """Shape of a U-ViT.

    Attributes:
        img_size: Height and width of the (square) input, in pixels or latent cells.
        patch_size: Side of one square patch; divides `img_size`.
        in_chans: Channels of the input and of the output.
        embed_dim: Token width.
        depth: In-blocks plus out-blocks, an even number; the middle block comes on top.
        num_heads: Attention heads; divides `embed_dim`.
        mlp_ratio: Hidden width of a block's MLP over `embed_dim`.
        qkv_bias: Whether the fused query/key/value projection has a bias.
        mlp_time_embed: Whether a two-layer MLP follows the sinusoidal time embedding.
        num_classes: Size of the label table (with the null label, if any); 0 for no labels.
        conv: Whether a 3x3 convolution follows the unpatchified prediction.
        clip_dim: Width of the text features, 768 for CLIP ViT-L/14; 0 for no text.
        num_clip_token: Text tokens of one caption.
    """

    img_size: int
    patch_size: int
    in_chans: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    mlp_time_embed: bool = False
    num_classes: int = 0
    conv: bool = True
    clip_dim: int = 0
    num_clip_token: int = 77

    def __post_init__(self) -> None:
        """Rejects shapes that cannot be built."""
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide {self.img_size}")
        if self.depth % 2:
            raise ValueError(f"depth must be even (in-blocks and out-blocks pair up): {self.depth}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide {self.embed_dim}")
        if self.num_classes > 0 and self.clip_dim > 0:
            raise ValueError("a U-ViT is conditioned by labels (num_classes) or by text (clip_dim)")


def uvit_small_cifar10() -> UViTConfig:
    """U-ViT-S/2 for CIFAR-10: 13 blocks on 32x32 RGB images, unconditional."""
    return UViTConfig(32, 2, 3, embed_dim=512, depth=12, num_heads=8)


def uvit_small_celeba64() -> UViTConfig:
    """U-ViT-S/4 for CelebA: 13 blocks on 64x64 RGB images, unconditional."""
    return UViTConfig(64, 4, 3, embed_dim=512, depth=12, num_heads=8)


def uvit_large_imagenet256() -> UViTConfig:
    """U-ViT-L/2 for ImageNet 256: 21 blocks on 32x32x4 latents, 1000 classes and a null label."""
    return UViTConfig(32, 2, 4, embed_dim=1024, depth=20, num_heads=16, num_classes=1001)


def uvit_small_coco256() -> UViTConfig:
    """U-ViT-S/2 for MS-COCO 256: 13 blocks on 32x32x4 latents, 77 CLIP tokens."""
    return UViTConfig(32, 2, 4, embed_dim=512, depth=12, num_heads=8, clip_dim=768)


def uvit_mnist() -> UViTConfig:
    """The small model shipped with this folder: 9 blocks on padded 32x32 digits."""
    return UViTConfig(32, 4, 1, embed_dim=128, depth=8, num_heads=4)


def uvit_mnist_small() -> UViTConfig:
    """Its rival of about half the cost, trained from scratch: 5 blocks of the same width."""
    return UViTConfig(32, 4, 1, embed_dim=128, depth=4, num_heads=4)
