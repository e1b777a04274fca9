"""Which calls are the repeated unit: by hand for every backbone, and for what stands beside blocks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.surgery.probe import probe
from exitkit.surgery.stages import Grouping, find_stages, size_of
from tests.backbones import CASES, Case, NoBlocks


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Chain(nn.Module):
    """Runs its children one after the other, those of lists too."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for one in part if isinstance(part, nn.ModuleList) else [part]:
                x = one(x)
        return x


def blocks(count: int, width: int = 8) -> nn.ModuleList:
    return nn.ModuleList(Block(width) for _ in range(count))


def found(net: nn.Module) -> Grouping:
    seen = probe(net.eval(), torch.randn(2, 8))
    return find_stages(seen.base, seen.perturbed)


def paths(groups: Iterable[object]) -> list[str]:
    return [group.path for group in groups]  # type: ignore[attr-defined]


def test_a_heavy_module_between_blocks_is_one_of_them_and_a_light_one_is_not() -> None:
    for width, is_one in ((8, True), (1, False)):
        grouping = found(Chain(down=blocks(2), mid=Block(width), up=blocks(2)))
        lists = ["down.0", "down.1", "up.0", "up.1"]
        assert paths(grouping.groups) == ([*lists[:2], "mid", *lists[2:]] if is_one else lists)
        assert dict(grouping.rejected) == ({} if is_one else {"mid": "between blocks, but small"})


def test_small_stems_and_tails_are_rejected_by_name() -> None:
    stem = nn.ModuleList([nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 8)) for _ in range(2)])
    grouping = found(Chain(stem=stem, body=blocks(3, 64)))
    assert paths(grouping.groups) == ["body.0", "body.1", "body.2"]
    assert dict(grouping.rejected) == dict.fromkeys(
        ["stem.0", "stem.1"], "a small stem in front of the blocks"
    )
    stem = nn.ModuleList([nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8)) for _ in range(2)])
    assert paths(found(Chain(stem=stem, body=blocks(3, 64))).groups)[:2] == ["stem.0", "stem.1"]


def test_blocks_may_be_attributes_or_lie_deeper() -> None:
    attributes = Chain(embed=nn.Linear(8, 8), a=Block(), b=Block(), c=Block())
    assert paths(found(attributes).groups) == ["a", "b", "c"]
    deeper = found(Chain(embed=nn.Linear(8, 8), trunk=Chain(layers=blocks(3))))
    assert deeper.level == "trunk"
    assert paths(deeper.groups) == ["trunk.layers.0", "trunk.layers.1", "trunk.layers.2"]


def test_the_size_of_a_stage_is_that_of_its_parameters() -> None:
    net = Chain(body=blocks(2, 5))
    seen = probe(net.eval(), torch.randn(2, 8))
    sizes = [size_of(seen.base.calls, g) for g in find_stages(seen.base, seen.perturbed).groups]
    assert sizes == [8 * 5 + 5 + 5 * 8 + 8] * 2


def test_nothing_repeats() -> None:
    seen = probe(NoBlocks().eval(), torch.randn(2, 4))
    with pytest.raises(UnsupportedBackboneError, match=r"NoBlocks has no blocks.*1 calls"):
        find_stages(seen.base, seen.perturbed)


@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_stages_are_the_repeated_blocks(backbone: Case) -> None:
    args, kwargs = backbone.inputs(2)
    plan = ek.inspect(backbone.make(), example_inputs=ek.Inputs(*args, **kwargs))
    paths = tuple(stage.calls[-1].path for stage in plan.stages)
    assert paths == backbone.stages
    assert (plan.mechanism == "tail") == backbone.lands
    assert plan.noisy == backbone.noisy


class Wrapper(nn.Module):
    """Hands everything on, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Preconditioned(nn.Module):
    """Scales what goes in and out, and has a small network of its own beside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.shift = model, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * self.model(0.7 * x) + 0.01 * self.shift(x)


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 6])
def test_wrappers_of_one_module_are_looked_through_at_any_depth(depth: int) -> None:
    net: nn.Module = Chain(layers=blocks(3))
    for _ in range(depth):
        net = Wrapper(net)
    grouping = found(net)
    assert [p[-8:] for p in paths(grouping.groups)] == ["layers.0", "layers.1", "layers.2"]


def test_a_wrapped_preconditioner_of_a_wrapped_network() -> None:
    net = Wrapper(Preconditioned(Wrapper(Wrapper(Chain(layers=blocks(3))))))
    wanted = [f"module.model.module.module.layers.{i}" for i in range(3)]
    assert paths(found(net).groups) == wanted


def test_a_block_of_one_child_is_no_level() -> None:
    grouping = found(Chain(layers=nn.ModuleList([Wrapper(Block()), Wrapper(Block())])))
    assert paths(grouping.groups) == ["layers.0", "layers.1"]


@pytest.mark.parametrize("wide", [8, 64])
def test_projections_round_a_transformer_are_none_of_its_blocks(wide: int) -> None:
    def project() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, wide), nn.Tanh(), nn.Linear(wide, 8))

    net = Chain(up=project(), body=Chain(layers=blocks(6, 32)), down=project())
    assert paths(found(net).groups) == [f"body.layers.{i}" for i in range(6)]


def test_a_heavy_module_without_blocks_leaves_the_layers_round_it() -> None:
    def project() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(8, 64), nn.LayerNorm(64)
            self.b = nn.Bilinear(64, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)), x)

    grouping = found(Chain(up=project(), body=Odd(), down=project()))
    assert paths(grouping.groups) == ["up.0", "up.1", "body", "down.0", "down.1"]


def test_bodies_that_mix_patches_have_stages() -> None:
    def layer() -> nn.Sequential:
        mix = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.GELU())
        return nn.Sequential(Wrapper(mix), nn.Conv2d(8, 8, 1), nn.GELU())

    stem, body = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.GELU()), [layer() for _ in range(4)]
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    torch.manual_seed(0)
    for net, at in (
        (nn.Sequential(*stem, *body, *ends), [str(i) for i in range(2, 6)]),
        (
            Chain(stem=stem, blocks=nn.Sequential(*body), ends=ends),
            [f"blocks.{i}" for i in range(4)],
        ),
    ):
        plan = ek.inspect(net.eval(), example_inputs=torch.randn(3, 3, 16, 16))
        assert [stage.calls[-1].path for stage in plan.stages] == at


def test_a_table_of_embeddings_weighs_nothing() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(4000, 8), nn.Linear(8, 8)
            self.body = Chain(layers=blocks(3))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.body(self.mix(self.embed(input_ids)))

    class Outer(Chain):
        def forward(self, input_ids: Tensor) -> Tensor:
            return self.body(self.words(input_ids))

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(4000, 8), nn.LayerNorm(8)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.norm(self.table(input_ids))

    ids = torch.randint(0, 4000, (2, 5))
    for net in (Reader(), Outer(words=Words(), body=Chain(layers=blocks(3)))):
        seen = probe(net.eval(), ids)
        assert paths(find_stages(seen.base, seen.perturbed).groups) == [
            f"body.layers.{i}" for i in range(3)
        ]
