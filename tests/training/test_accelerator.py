"""The accelerator of a fit leaves nothing behind, and a given one as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from exitkit.errors import ConfigError
from exitkit.training.accelerator import accelerated

CPU = torch.device("cpu")


def test_precision_and_state_end_with_it():
    for precision in ("bf16", "no"):
        with accelerated(CPU, None, precision) as made:
            assert made.mixed_precision == precision and made.device == CPU
            assert AcceleratorState._shared_state
        for state in (AcceleratorState, GradientState, PartialState):
            assert not state._shared_state


def test_state_ends_with_a_failure_too():
    with pytest.raises(ZeroDivisionError), accelerated(CPU, None, "bf16"):
        raise ZeroDivisionError
    assert not AcceleratorState._shared_state


def test_a_given_one_is_used_and_gets_its_handler_back():
    given = SimpleNamespace(distributed_type="DistributedType.NO", ddp_handler=None)
    with accelerated(CPU, given, None) as used:
        assert used is given and given.ddp_handler.find_unused_parameters
    assert given.ddp_handler is None
    mine = given.ddp_handler = object()
    with accelerated(CPU, given, None):
        assert given.ddp_handler is mine


def test_what_does_not_fit_is_refused():
    given = SimpleNamespace(distributed_type="DistributedType.FSDP", ddp_handler=None)
    with pytest.raises(ConfigError, match="splits parameters"), accelerated(CPU, given, None):
        pass
    with pytest.raises(ConfigError, match="precision with accelerator"):
        accelerated(CPU, given, "bf16").__enter__()
