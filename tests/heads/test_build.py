"""Heads on a plan: which exits, which sharing, what they cost."""

from __future__ import annotations

import copy

import pytest
import torch

import exitkit as ek
from exitkit.config import ExitConfig, OutputConfig, UncertaintyConfig
from exitkit.errors import BoundaryError
from exitkit.heads import build
from exitkit.heads.build import Heads, count_macs, select_boundaries
from tests.training.test_carried import SHAPE, Net, TinyUNet


def wrapped(net=Net, preset="relative", **options):
    example = (torch.randn(2, *SHAPE), torch.tensor([10, 500]))
    return ek.wrap(net().eval(), preset, example_inputs=example, **options)


@pytest.mark.parametrize(
    ("exits", "stages"),
    [
        (None, [1, 2, 3]),
        ((1, -1), [1, 3]),
        ((3, 1, 1), [1, 3]),
        (("blocks.1",), [2]),
        (("blocks.[02]", 2), [1, 2, 3]),
    ],
)
def test_boundaries_by_number_path_and_wildcard(exits, stages):
    plan = wrapped().plan
    found = select_boundaries(plan, ExitConfig(exits=exits))
    assert [b.stage for b in found] == stages


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (0, "no boundary 0"),
        (9, "numbered 1 to 3"),
        ("block.1", "Did you mean"),
        ("blocks.3", "'blocks.3' cannot carry an exit"),
    ],
)
def test_what_is_not_there_is_refused(name, match):
    with pytest.raises(BoundaryError, match=match):
        select_boundaries(wrapped().plan, ExitConfig(exits=(name,)))


@pytest.mark.parametrize(("shared", "heads"), [(False, 3), (True, 1), ("by_shape", 1)])
def test_sharing_of_uncertainty_heads(shared, heads):
    config = ExitConfig(uncertainty=UncertaintyConfig(shared=shared, final=True))
    made = Heads(wrapped().plan, config)
    assert len({id(head) for head in made.uncertainty}) == heads
    assert (made.final is made.uncertainty[-1]) is bool(shared)


def test_one_head_cannot_be_shared_by_exits_of_several_shapes():
    plan = wrapped(TinyUNet, "paper").plan
    config = ExitConfig(
        uncertainty=UncertaintyConfig(shared=True), output=OutputConfig(kind="output")
    )
    with pytest.raises(BoundaryError, match="shared='by_shape'"):
        Heads(plan, config)
    by_shape = config.model_copy(update={"uncertainty": UncertaintyConfig(shared="by_shape")})
    made = Heads(plan, by_shape)
    assert 1 < len({id(head) for head in made.uncertainty}) < len(made.uncertainty)


def test_names_of_head_tensors():
    """Saved exits of all presets are read by these names."""
    model = wrapped(preset="paper", exits=("*",))
    names = {name.rsplit(".", 2)[0] for name in dict(model.named_parameters()) if "heads" in name}
    assert {n.split(".")[1] for n in names} == {"output", "uncertainty", "final"}
    assert {n.split(".")[2] for n in names if ".output." in n} == {"0", "1", "2"}


@pytest.mark.parametrize("width", [8, 16])
def test_macs_of_a_tail_head_are_one_linear_layer_and_the_timesteps(width):
    """16 tokens of `width` channels; the norm and the sigmoid are no multiply-accumulates."""
    model = wrapped(lambda: Net(dim=width))
    ((output, uncertainty), *_) = count_macs(model.heads)
    dim = model.exit_config.uncertainty.embedding_dim
    assert output == 16 * width * width + dim * width
    assert uncertainty == 16 * width * 3 + dim * 3


def test_macs_of_carried_heads():
    output = OutputConfig(kind="carried", knots=8, width=4)
    model = wrapped(preset="carried", output=output)
    ((made, _),) = count_macs(model.heads)
    # Five parts of 8 channels to rank 4, and back to 8 channels, at 16 tokens.
    assert made == 16 * (5 * 8 * 4 + 4 * 8)


def test_embedding_of_backbones_without_a_timestep_has_no_columns():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))
                for _ in range(4)
            )
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    model = ek.wrap(Plain().eval(), "relative", example_inputs=(torch.randn(2, 8),))
    assert model.heads.embedding is None
    assert model.heads.embed(torch.zeros(3)).shape == (3, 0)


def test_macs_of_the_same_heads_are_counted_once(monkeypatch):
    heads = wrapped().heads
    first = count_macs(heads)
    with monkeypatch.context() as patch:
        patch.setattr(build, "MacCounter", None)
        assert count_macs(heads) == first
        assert count_macs(copy.deepcopy(heads)) == first
    # Others in their place are counted.
    heads.output[0] = torch.nn.Sequential(heads.output[0])
    heads.output[0].forward = lambda hidden, *_: hidden @ torch.ones(8, 5)
    assert count_macs(heads)[0][0] == 16 * 8 * 5 and count_macs(heads)[1:] == first[1:]
