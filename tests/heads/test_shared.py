"""Output heads of kind `shared`."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import SharedHead
from tests.heads.specs import SPECS, E, hidden_of


@pytest.mark.parametrize("name", SPECS)
def test_the_hidden_state_is_handed_on_as_it_is(name):
    h = hidden_of(SPECS[name])
    head = SharedHead()
    assert head(h, torch.randn(2, E)) is h and head(h) is h
    assert not list(head.parameters()) and not head.state_dict()
