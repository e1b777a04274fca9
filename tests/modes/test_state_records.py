"""Each kind of state is put back exactly, and says what it had become."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from exitkit.modes.state_records import WRITTEN, Box, Empty, Fields, Values, join


class ReadOnly(OrderedDict[str, Any]):
    """As the configs of diffusers: a mapping that refuses to be written to."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("read-only")


def test_a_read_only_mapping_is_put_back() -> None:
    box = ReadOnly()
    for key in "ab":
        OrderedDict.__setitem__(box, key, key)
    record = Box("config", box)
    OrderedDict.__setitem__(box, "a", 2)
    OrderedDict.__delitem__(box, "b")
    assert dict(record.restore()) == {"config.a": 2, "config.b": None}
    assert list(box.items()) == [("a", "a"), ("b", "b")]
    assert not list(record.restore()), "nothing left to put back"


def test_private_slots_are_put_back() -> None:
    class Hidden:
        __slots__ = ("__deep", "open")

        def __init__(self) -> None:
            self.__deep = 1

        def change(self) -> None:
            self.__deep, self.open = 2, 3

        def deep(self) -> int:
            return self.__deep

    hidden = Hidden()
    record = Fields("kept", hidden)
    hidden.change()
    assert dict(record.restore()) == {"kept.open": 3, "kept._Hidden__deep": 2}
    assert hidden.deep() == 1 and not hasattr(hidden, "open")


def test_inference_tensors_are_put_back() -> None:
    with torch.inference_mode():
        kept = torch.zeros(2)
    record = Values("kept", kept)
    with torch.inference_mode():
        kept.add_(1)
    assert [(path, value.tolist()) for path, value in record.restore()] == [("kept", [1.0, 1.0])]
    assert kept.tolist() == [0.0, 0.0]


def test_parameters_are_not_copied_but_watched() -> None:
    weight = nn.Parameter(torch.zeros(2000))
    record = Values("weight", weight)
    assert record.copy is None
    weight.data = torch.ones(2000)
    assert not list(record.restore()) and weight.sum() == 0
    with torch.no_grad():
        weight.add_(1)
    assert list(record.restore()) == [("weight", WRITTEN)]


def test_small_parameters_may_be_written() -> None:
    scale = nn.Parameter(torch.tensor([2.0, 9.0]))
    for most, left in ((10.0, []), (5.0, [("scale", [2.0, 5.0])])):
        record = Values("scale", scale)
        with torch.no_grad():
            scale.clamp_(
                max=most
            )  # as networks keep a temperature in range; mostly nothing changes
        assert [(path, value.tolist()) for path, value in record.restore()] == left
        assert scale.tolist() == [2.0, 9.0]


def test_paths_are_those_of_the_state_dict() -> None:
    assert join(join("blocks.0", "_buffers"), "table") == "blocks.0.table"


def test_what_was_empty_is_empty_again_and_tells_what_was_put_there() -> None:
    module = nn.Linear(1, 1)
    module.kept, module.log, module.names = {}, [], set()
    boxes = [(n, getattr(module, n)) for n in ("kept", "log", "names", "_buffers")]
    record = Empty("layer", boxes)
    assert not list(record.restore()), "nothing was put there"
    module.kept["a"] = 1
    module.log.append(2)
    module.register_buffer("table", torch.zeros(1))
    left = list(record.restore())
    assert left[:2] == [("layer.kept.a", 1), ("layer.log", 2)]
    assert left[2][0] == "layer.table" and torch.equal(left[2][1], torch.zeros(1))
    assert not any(box for _, box in boxes) and not list(record.restore())
