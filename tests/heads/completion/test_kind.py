"""The kind and its settings: where completion is possible, and what goes with it."""

import pytest
import torch

import exitkit as ek
from exitkit.config import PRESETS, ExitConfig, OutputConfig
from exitkit.errors import BoundaryError, ConfigError
from tests.execution.test_carried import tiny_uvit


def test_the_preset_has_no_exit_and_one_head_for_the_whole_backbone():
    net = tiny_uvit()
    example = (torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0]))
    model = ek.wrap(net, "completion", example_inputs=example)
    assert model.exits == [] and model.heads.completion is not None
    assert "depth 0" in model.summary() and "not solved" in model.summary()
    assert list(model.exit_parameters()) == list(model.heads.embedding.parameters())
    assert PRESETS["completion"].exits == ()


def test_settings_that_do_not_go_with_it_are_refused():
    assert ExitConfig(output=OutputConfig(kind="completion")).exits == ()
    for name, value in (("exits", (1,)), ("loss", {"train_backbone": True})):
        with pytest.raises(ConfigError, match="completion"):
            ek.config.resolve_config("completion", **{name: value})
    with pytest.raises(ConfigError, match="exits"):
        ek.config.resolve_config("relative", exits=())


def test_a_backbone_that_predicts_something_else_is_refused():
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
            self.out = torch.nn.Linear(8, 5)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return self.out(x)

    with pytest.raises(BoundaryError, match="completion"):
        ek.wrap(Classifier(), "completion", example_inputs=(torch.randn(2, 8),))
