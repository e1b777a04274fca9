"""What is seen of tensors that come onto blocks between two forwards."""

from __future__ import annotations

import copy

import torch
from torch import nn

from exitkit.execution.attributes import Attributes


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.held, self.width = nn.Linear(2, 2), None, 3


def test_changes_between_forwards_make_a_form_unknown() -> None:
    blocks = nn.ModuleList(Block() for _ in range(3))
    seen = Attributes(blocks)
    seen.tried.add("form")
    assert seen.known("form") and not seen.known("another")
    changes = [
        lambda: setattr(blocks[1], "held", torch.zeros(2)),  # where there was none
        lambda: setattr(blocks[1], "held", torch.zeros(2)),  # another one
        lambda: setattr(blocks[2].inner, "extra", torch.zeros(2)),  # a new name, further in
        lambda: delattr(blocks[2].inner, "extra"),
        lambda: setattr(blocks[1], "held", None),
    ]
    for change in changes:
        change()
        assert not seen.known("form")  # once
        seen.tried.add("form")
        assert seen.known("form")
        seen.ended()
    blocks[0].width = 4  # the control: no tensor
    blocks[0].inner.weight.data = torch.zeros(2, 2)
    assert seen.known("form")


def test_what_a_forward_writes_is_not_looked_at_again() -> None:
    block = Block()
    seen = Attributes([block])
    seen.tried.add("form")
    assert seen.known("form")
    block.held, block.noted = torch.zeros(2), torch.ones(2)  # inside of a forward
    seen.ended()
    for _ in range(2):
        assert seen.known("form")
        block.held, block.noted = torch.zeros(2), torch.ones(2)
        seen.ended()
    block.other = torch.zeros(2)  # by hand
    assert not seen.known("form")


def test_a_copy_looks_at_its_own_blocks() -> None:
    blocks = nn.ModuleList(Block() for _ in range(2))
    seen = Attributes(blocks)
    other, theirs = copy.deepcopy((blocks, seen))
    seen.tried.add("form"), theirs.tried.add("form")
    other[0].held = torch.zeros(2)
    assert seen.known("form") and not theirs.known("form")
