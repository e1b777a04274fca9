"""Tiny backbones of many architectures, each with inputs of any batch: the cases of the contract.

Third-party classes come with shrunken configurations and random weights. Every parameter is moved
by a seeded normal, because zero-initialised gates would hide a wrongly skipped block. Row `i` of a
seed is the same whichever batch it is in, so "that row alone" needs nothing from exitkit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from examples.reproduction.models.uvit import UViT, UViTConfig

Rows = dict[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)  # each is itself alone
class Case:
    """One backbone and what its inputs look like.

    Attributes:
        id: Name in the test report.
        build: Makes the module; `make` also perturbs it.
        row: Draws the arguments of one row (batch of one) by name, for a generator and a size.
        stages: Dotted path of every stage in execution order.
        lands: Whether an exit reaches the backbone's own tail (same shape all the way).
        axes: Batch axis of arguments where it is not 0; None if rows share the argument.
        keywords: Arguments that are passed by name; the others go by position, in order.
        constants: Further keyword arguments.
        sizes: Names of the input sizes that the backbone accepts.
        output_axis: Batch axis of the prediction.
        noisy: Argument that carries the noisy input.
    """

    id: str
    build: Callable[[], nn.Module]
    row: Callable[[Generator, str], Rows]
    stages: tuple[str, ...]
    lands: bool = True
    axes: Mapping[str, int | None] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[str, ...] = ("base",)
    output_axis: int = 0
    noisy: str = "x"

    def make(self, seed: int = 0) -> nn.Module:
        """Builds the module in eval mode, perturbed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().eval()
        return perturb(model, seed)

    def rows(self, ids: Sequence[int], seed: int = 0, size: str = "base") -> Call:
        """Stacks the rows with the given numbers."""
        drawn = [self.row(_generator(seed, i), size) for i in ids]
        stacked: dict[str, Tensor] = {}
        for name, first in drawn[0].items():
            axis = self.axes.get(name, 0)
            stacked[name] = first if axis is None else torch.cat([d[name] for d in drawn], dim=axis)
        args = tuple(v for k, v in stacked.items() if k not in self.keywords)
        kwargs = {k: v for k, v in stacked.items() if k in self.keywords}
        return args, {**kwargs, **self.constants}

    def inputs(self, batch: int, seed: int = 0, size: str = "base") -> Call:
        """Rows 0 .. batch - 1."""
        return self.rows(range(batch), seed, size)

    def select(self, output: Any, index: int) -> Tensor:
        """One row of the prediction, batch of one."""
        return prediction(output).narrow(self.output_axis, index, 1)


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Adds N(0, 0.05) to every parameter and running mean, N(0, 0.02) to large matrices."""
    generator = torch.Generator().manual_seed(1000 + seed)
    named = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, value in named:
            if isinstance(value, nn.Parameter) or name.endswith("running_mean"):
                std = 0.02 if value.numel() > 4096 else 0.05
                value.add_(std * torch.randn(value.shape, generator=generator))
    return model


def prediction(output: Any) -> Tensor:
    """First tensor of an output of any type."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def hidden_in(output: Any) -> Tensor:
    """The hidden state in what a block of a case returns."""
    if isinstance(output, dict):
        return output["hidden"]
    if isinstance(output, tuple):  # diffusers' down blocks return (hidden, (skips, ...))
        return output[0] if isinstance(output[-1], tuple) else output[-1]
    return output


def _generator(seed: int, row: int) -> Generator:
    return torch.Generator().manual_seed(7919 * seed + row + 1)


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=generator)


def _time(generator: Generator) -> Tensor:
    return torch.randint(1, 1000, (1,), generator=generator)


def time_features(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of t in 0..1000, (B,) -> (B, dim)."""
    angles = t.float()[:, None] * torch.logspace(0, -3, dim // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


# ------------------------------------------------------------------ handwritten calling conventions


class Mlp(nn.Module):
    """Residual MLP with a shift from the timestep; the working part of the blocks below."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)
        self.shift = nn.Linear(dim, dim)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x) + self.shift(emb)[:, None])))


class TokenNet(nn.Module):
    """Skeleton: 1x1 patches of (B, C, H, W) to tokens, blocks, tokens to an image."""

    def __init__(self, block: type[nn.Module] = Mlp, depth: int = 4, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(3, dim)
        self.blocks = nn.ModuleList(block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        tokens = self.trunk(tokens, time_features(t, self.dim))
        return self.head(self.norm(tokens)).transpose(1, 2).reshape(x.shape)

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, emb)
        return tokens


class TupleBlock(nn.Module):
    """Takes and returns (context, hidden), both of which change: hidden comes second."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim)
        self.context = nn.Linear(dim, dim)

    def forward(self, pair: tuple[Tensor, Tensor], emb: Tensor) -> tuple[Tensor, Tensor]:
        context, hidden = pair
        hidden = self.mlp(hidden + context.mean(dim=1, keepdim=True), emb)
        return context + self.context(context), hidden


class TupleNet(TokenNet):
    """Tuples between blocks and a tuple at the end."""

    def __init__(self) -> None:
        super().__init__(TupleBlock)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, str]:
        return super().forward(x, t), "second"

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        pair = (emb[:, None].expand(-1, 2, -1), tokens)
        for block in self.blocks:
            pair = block(pair, emb)
        return pair[1]


class DictBlock(nn.Module):
    """Takes and returns a dictionary with one entry that it leaves alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim)

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "hidden": self.mlp(state["hidden"], state["emb"])}


class DictNet(TokenNet):
    """Dictionaries between blocks and a dictionary at the end."""

    def __init__(self) -> None:
        super().__init__(DictBlock)

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Any]:
        return {"sample": super().forward(x, t), "note": "kept"}

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        state: dict[str, Any] = {"emb": emb, "hidden": tokens, "scale": 1.0}
        for block in self.blocks:
            state = block(state)
        return state["hidden"]


class KeywordBlock(nn.Module):
    """Hidden state by keyword only, and not first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim)

    def forward(self, *, emb: Tensor, hidden_states: Tensor) -> Tensor:
        return self.mlp(hidden_states, emb)


class KeywordNet(TokenNet):
    """Everything by keyword."""

    def __init__(self) -> None:
        super().__init__(KeywordBlock)

    def forward(self, *, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(sample, timestep) * scale

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(hidden_states=tokens, emb=emb)
        return tokens


class SharedNet(TokenNet):
    """One block, called four times (an ALBERT-like loop)."""

    def __init__(self) -> None:
        super().__init__(depth=0)
        self.block = Mlp(self.dim)

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for _ in range(4):
            tokens = self.block(tokens, emb)
        return tokens


class BranchNet(TokenNet):
    """Control flow on values, which symbolic tracing cannot follow."""

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, emb)
            if bool((tokens.abs() > 1e6).any()):
                tokens = tokens.clamp(-1e6, 1e6)
        return tokens


class InplaceBlock(Mlp):
    """Changes its own input, as CNNs with inplace activations do."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(F.leaky_relu_(x, 0.5), emb)


class GlueNet(TokenNet):
    """Adds something of its own between blocks (control branches, face adapters)."""

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, emb)
            tokens = tokens * 1.1 + 0.1 * emb[:, None].cos()
        return tokens


class FramesNet(TokenNet):
    """Video (B, F, C, H, W): blocks see B*F rows, the frames of a row side by side."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frames = x.shape[1]
        return super().forward(x.flatten(0, 1), t.repeat_interleave(frames)).reshape(x.shape)


class SequenceFirstNet(nn.Module):
    """torch's own encoder, sequence first, with patches before and logits behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.encoder = sequence_first_encoder()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.embed(x).transpose(0, 1))  # (B, S, D) -> (S, B, D)
        return self.head(tokens.mean(dim=0))


class ConvBlock(nn.Module):
    """Residual convolution without anything optional."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class NoBlocks(nn.Module):
    """Nothing repeats, so there is nothing to skip."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class CoupledBlock(Mlp):
    """Subtracts the mean of the batch: a row depends on its batch mates."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True), emb)


def sequence_first_encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=False)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def sequential_cnn() -> nn.Sequential:
    blocks = nn.Sequential(*(ConvBlock(8) for _ in range(4)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), blocks, head)


# ---------------------------------------------------------------------------- third-party backbones


def uvit(classes: int = 0) -> UViT:
    return UViT(UViTConfig(8, 2, 3, embed_dim=32, depth=4, num_heads=2, num_classes=classes))


def dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    )


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    )


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )


def unet_conditional() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    )


def vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=4, num_classes=10, embed_dim=24, depth=4, num_heads=2
    )


def resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, (2, 1, 1, 1), num_classes=10, stem_width=8, channels=(8, 16, 24, 32))


def convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=10, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), patch_size=2)


# --------------------------------------------------------------------------------------------- rows


def _image(
    generator: Generator, size: str, *, channels: int = 3, side: int = 8, name: str = "x"
) -> Rows:
    side = side * 2 if size == "large" else side
    return {name: _randn(generator, channels, side, side)}


def _noisy(
    generator: Generator,
    size: str,
    *,
    channels: int = 3,
    side: int = 8,
    names: tuple[str, str] = ("x", "t"),
) -> Rows:
    image = _image(generator, size, channels=channels, side=side, name=names[0])
    return {**image, names[1]: _time(generator)}


def _labelled(generator: Generator, size: str, *, draw: Callable[..., Rows], name: str) -> Rows:
    return {**draw(generator, size), name: torch.randint(0, 10, (1,), generator=generator)}


def _video(generator: Generator, size: str) -> Rows:
    return {"x": _randn(generator, 2, 3, 4, 4), "t": _time(generator)}


def _sequence_first(generator: Generator, size: str) -> Rows:
    length = 12 if size == "large" else 6
    return {"src": torch.randn(length, 1, 16, generator=generator)}


def _sequence(generator: Generator, size: str) -> Rows:
    return {"x": _randn(generator, 12 if size == "large" else 6, 6)}


def _sd3(generator: Generator, size: str) -> Rows:
    rows = _noisy(generator, size, channels=4, names=("hidden_states", "timestep"))
    prompt = {"encoder_hidden_states": _randn(generator, 5, 12)}
    return {**rows, **prompt, "pooled_projections": _randn(generator, 12)}


def _flux(generator: Generator, size: str) -> Rows:
    side = 6 if size == "large" else 4
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3).float()
    return {
        "hidden_states": _randn(generator, side * side, 4),
        "encoder_hidden_states": _randn(generator, 3, 12),
        "pooled_projections": _randn(generator, 12),
        "timestep": torch.rand(1, generator=generator),
        "img_ids": ids,
        "txt_ids": torch.zeros(3, 3),
    }


def _unet(generator: Generator, size: str) -> Rows:
    return _noisy(generator, size, side=16, names=("sample", "timestep"))


def _unet_conditional(generator: Generator, size: str) -> Rows:
    rows = _noisy(generator, size, channels=4, side=16, names=("sample", "timestep"))
    return {**rows, "encoder_hidden_states": _randn(generator, 5, 12)}


def _blocks(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{i}" for i in range(count))


BOTH = ("base", "large")
UVIT_STAGES = (*_blocks("in_blocks", 2), "mid_block", *_blocks("out_blocks", 2))
UNET_STAGES = (*_blocks("down_blocks", 2), "mid_block", *_blocks("up_blocks", 2))
BLOCKS = _blocks("blocks", 4)
_dit = partial(_noisy, channels=4, names=("hidden_states", "timestep"))

CASES: tuple[Case, ...] = (
    Case("uvit", uvit, _noisy, UVIT_STAGES),
    Case(
        "uvit_labels",
        partial(uvit, classes=10),
        partial(_labelled, draw=_noisy, name="y"),
        UVIT_STAGES,
        keywords=("y",),
    ),
    Case(
        "dit",
        dit,
        partial(_labelled, draw=_dit, name="class_labels"),
        _blocks("transformer_blocks", 4),
        keywords=("timestep", "class_labels"),
        sizes=BOTH,
        noisy="hidden_states",
    ),
    Case(
        "sd3",
        sd3,
        _sd3,
        _blocks("transformer_blocks", 4),
        keywords=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
        sizes=BOTH,
        noisy="hidden_states",
    ),
    Case(
        "flux",
        flux,
        _flux,
        (*_blocks("transformer_blocks", 2), *_blocks("single_transformer_blocks", 3)),
        axes={"img_ids": None, "txt_ids": None},
        keywords=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "img_ids",
            "txt_ids",
        ),
        constants={"return_dict": False},
        sizes=BOTH,
        noisy="hidden_states",
    ),
    Case("unet", unet, _unet, UNET_STAGES, lands=False, sizes=BOTH, noisy="sample"),
    Case(
        "unet_conditional",
        unet_conditional,
        _unet_conditional,
        UNET_STAGES,
        lands=False,
        keywords=("encoder_hidden_states",),
        sizes=BOTH,
        noisy="sample",
    ),
    Case("timm_vit", vit, partial(_image, side=16), BLOCKS),
    Case(
        "timm_resnet",
        resnet,
        partial(_image, side=32),
        ("layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"),
        lands=False,
        sizes=BOTH,
    ),
    Case(
        "timm_convnext", convnext, partial(_image, side=32), _blocks("stages", 4), False, sizes=BOTH
    ),
    Case(
        "encoder_sequence_first",
        sequence_first_encoder,
        _sequence_first,
        _blocks("layers", 4),
        axes={"src": 1},
        sizes=BOTH,
        output_axis=1,
        noisy="src",
    ),
    Case("classifier_sequence_first", SequenceFirstNet, _sequence, _blocks("encoder.layers", 4)),
    Case(
        "sequential_cnn",
        sequential_cnn,
        partial(_image, name="input"),
        _blocks("1", 4),
        sizes=BOTH,
        noisy="input",
    ),
    Case("shared_block", SharedNet, _noisy, ("block",) * 4, sizes=BOTH),
    Case("tuple_blocks", TupleNet, _noisy, BLOCKS, sizes=BOTH),
    Case("dict_blocks", DictNet, _noisy, BLOCKS, sizes=BOTH),
    Case(
        "keyword_only",
        KeywordNet,
        partial(_noisy, names=("sample", "timestep")),
        BLOCKS,
        keywords=("sample", "timestep"),
        constants={"scale": 2.0},
        sizes=BOTH,
        noisy="sample",
    ),
    Case("value_branch", BranchNet, _noisy, BLOCKS, sizes=BOTH),
    Case("inplace_blocks", partial(TokenNet, InplaceBlock), _noisy, BLOCKS, sizes=BOTH),
    Case("glue_between", GlueNet, _noisy, BLOCKS, sizes=BOTH),
    Case("folded_frames", FramesNet, _video, BLOCKS),
)

COUPLED = Case("coupled", partial(TokenNet, CoupledBlock), _noisy, BLOCKS)

CASES_BY_ID: Mapping[str, Case] = {case.id: case for case in CASES}


def case(name: str) -> Case:
    """The case with this id."""
    return CASES_BY_ID[name]
