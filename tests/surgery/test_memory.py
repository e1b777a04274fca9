"""Backbones that answer by what earlier calls left are refused by what they do; others are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.modes.snapshot import preserved_state
from exitkit.surgery.dry_run import DryRun
from exitkit.surgery.inputs import bind, signature_of
from tests.modes.test_snapshot import LEAVERS, Net, attribute, example


def test_dry_runs_start_from_the_same_state() -> None:
    """A cache that the first run fills does not answer the second."""

    def remember(net: Net, x: Tensor) -> None:
        net.kept.setdefault("first", x.mean((1, 2), keepdim=True))
        x.add_(net.kept["first"])

    net = Net(attribute("kept", dict), remember).eval()
    x, t = example()
    runs = [DryRun(net).run(bind(signature_of(net.forward), (v, t), {})) for v in (x, x + 1)]
    fresh = Net(attribute("kept", dict), remember).eval()
    with torch.no_grad():
        assert torch.equal(runs[1].output, fresh(x + 1, t))
    assert runs[0].left.keys() == {"kept.first"}
    with pytest.raises(UnsupportedBackboneError, match=r"from call to call \(kept.first\)"):
        ek.inspect(net, example_inputs=(x, t))


def test_a_counter_that_changes_nothing_is_no_memory() -> None:
    net = Net(*LEAVERS["a counter"][:2]).eval()
    assert ek.inspect(net, example_inputs=example()).num_stages == 3


def test_lazy_layers_are_to_be_called_first() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.LazyLinear(8), nn.Tanh()) for _ in range(3))).eval()
    x = torch.randn(2, 8)
    with pytest.raises(TracingError, match="Call it once"):
        ek.inspect(net, example_inputs=x)
    with torch.no_grad():
        net(x)
    assert ek.inspect(net, example_inputs=x).num_stages == 3


def test_a_cache_of_diffusers_is_refused_and_stays_empty() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
        ).eval()
        one = {
            "hidden_states": torch.randn(1, 16, 4),
            "encoder_hidden_states": torch.randn(1, 6, 32),
            "pooled_projections": torch.randn(1, 32),
            "timestep": torch.tensor([1.0]),
            "img_ids": torch.randn(16, 3),
            "txt_ids": torch.randn(6, 3),
        }
    net.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1.0))
    with torch.no_grad(), net.cache_context("cond"):
        with preserved_state(net):
            expected = net(**one).sample
        with pytest.raises(UnsupportedBackboneError, match="from call to call"):
            ek.wrap(net, example_inputs=one)
        assert torch.equal(net(**one).sample, expected)
    net.disable_cache()
    assert ek.inspect(net, example_inputs=one).num_stages == 6
