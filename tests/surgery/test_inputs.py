"""Arguments: the forms of an example, names for positions, and which one is noisy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitkit.errors import TracingError
from exitkit.surgery.inputs import Inputs, bind, find_noisy, is_time, signature_of
from tests.backbones import CASES, Case


def forward(x: Tensor, t: Tensor, *more: Any, scale: float = 1.0, **rest: Any) -> None:
    """A signature with everything."""


X, T = torch.randn(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, T), (X, T), {}),
        ([X, T], (X, T), {}),
        ({"x": X, "t": T}, (), {"x": X, "t": T}),
        (Inputs(X, t=T), (X,), {"t": T}),
    ],
    ids=["tensor", "tuple", "list", "dict", "inputs"],
)
def test_an_example_may_have_any_form(example: Any, args: Any, kwargs: Any) -> None:
    found = Inputs.of(example)
    assert list(map(id, found.args)) == list(map(id, args))
    assert {k: id(v) for k, v in found.kwargs.items()} == {k: id(v) for k, v in kwargs.items()}


def test_what_is_no_example_is_refused() -> None:
    with pytest.raises(TracingError, match="got int"):
        Inputs.of(3)


def test_position_and_name_are_alike() -> None:
    signature = signature_of(forward)
    one, two = bind(signature, (X, T), {}), bind(signature, (), {"t": T, "x": X})
    assert list(one.values) == list(two.values) == ["x", "t"]
    assert [id(t) for _, t in one.tensors()] == [id(t) for _, t in two.tensors()]
    full = bind(signature, (X, T, "a", [X]), {"scale": 2.0, "y": [T, T]})
    args, kwargs = full.split()
    assert args[2:] == ("a", [X]) and kwargs == {"scale": 2.0, "y": [T, T]}
    new = full.replaced({"rest.y[1]": X})
    assert new.split()[1]["y"][1] is X and full.split()[1]["y"][1] is T
    # A call that the signature refuses goes to the module as it came, which shows its own error.
    wrong = bind(signature, (), {"z": X})
    assert wrong.signature is None and wrong.split() == ((), {"z": X})


def test_entries_of_lists_are_chosen_in_order() -> None:
    bound = bind(signature_of(forward), ([1, 2, 3], (4, 5, 6)), {})
    assert bound.lists() == {"x": 3, "t": 3}
    chosen = bound.with_entries(["x", "not there"], [2, 0, 0])
    assert chosen.values == {"x": [3, 1, 1], "t": (4, 5, 6)}


@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_the_noisy_input_is_found(backbone: Case) -> None:
    net = backbone.make()
    args, kwargs = backbone.inputs(2)
    assert find_noisy(bind(signature_of(net.forward), args, kwargs), net) == backbone.noisy


def test_names_go_before_order_and_declarations_before_names() -> None:
    def named(mask: Tensor, image: Tensor, t: Tensor, ids: Tensor) -> None: ...

    def nameless(t: Tensor, ids: Tensor, a: Tensor) -> None: ...

    ids, net = torch.arange(2), nn.Identity()
    bound = bind(signature_of(named), (X, X, T, ids), {})
    assert find_noisy(bound, net) == "image"
    assert find_noisy(bound, net, "mask") == "mask"
    with pytest.raises(TracingError, match="noisy='masks' is not among.*mask, image, t, ids"):
        find_noisy(bound, net, "masks")
    assert find_noisy(bind(signature_of(nameless), (X, ids, T), {}), net) == "a"
    with pytest.raises(TracingError, match="no floating-point tensor .found ids"):
        find_noisy(bind(signature_of(nameless), (), {"t": 1, "ids": ids, "a": None}), net)


def test_times_are_told_by_name() -> None:
    assert all(map(is_time, ["t", "sigma", "timestep", "vision_timesteps", "start_time"]))
    assert not any(map(is_time, ["x", "times_table", "text", "timed"]))
