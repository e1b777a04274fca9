"""Arguments: the forms of an example, and names for positions."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from exitkit.errors import TracingError
from exitkit.surgery.inputs import Binder, Inputs, bind, is_time, positional, signature_of


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


def test_times_are_told_by_name() -> None:
    assert all(
        map(is_time, ["t", "sigma", "timestep", "vision_timesteps", "start_time", "diffusion_step"])
    )
    assert not any(map(is_time, ["x", "times_table", "text", "timed", "steps_left"]))


def test_arguments_without_a_name_have_none() -> None:
    def plain(a: Any, b: Any = 1, *, c: Any = 2) -> None: ...
    def loose(a: Any, **rest: Any) -> None: ...
    def more(a: Any, *rest: Any) -> None: ...

    signatures = [inspect.signature(f) for f in (plain, loose, more)]
    assert [positional(s) for s in signatures] == [("a", "b"), None, ("a",)]
    assert positional(None) is None


def test_calls_bound_quickly_are_bound_like_any_other() -> None:
    def plain(a: Any, b: Any = 1, c: Any = 2) -> None: ...
    def only(a: Any, /, b: Any = 1) -> None: ...
    def named(a: Any, *, c: Any) -> None: ...
    def loose(a: Any, *more: Any, **rest: Any) -> None: ...

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1, 2, 3), {}),
        ((1,), {}),
        ((), {"a": 1}),
        ((1,), {"b": 2}),
        ((1,), {"c": 3, "b": 2}),
        ((1,), {"c": 3}),
        ((), {"b": 2}),
        ((), {}),
        ((1,), {"a": 1}),
        ((1, 2, 3, 4), {}),
        ((1,), {"nothing": 2}),
    ]
    for forward in (plain, only, named, loose):
        signature = inspect.signature(forward)
        for args, kwargs in calls:
            found, wanted = Binder(signature)(args, kwargs), bind(signature, args, kwargs)
            assert found == wanted and list(found.values) == list(wanted.values)
    assert Binder(None)((1,), {}) == bind(None, (1,), {})


def test_the_signature_of_a_method_is_kept_and_that_of_a_decorated_one_is_asked_again() -> None:
    class Two:
        def plain(self, a: Any, b: Any = 1) -> None: ...

        def told(self, a: Any) -> None: ...

    one, other = Two(), Two()
    assert signature_of(one.plain) is signature_of(other.plain)
    assert signature_of(one.plain) == inspect.signature(one.plain)
    Two.told.__signature__ = inspect.signature(Two.plain)  # type: ignore[attr-defined]
    assert signature_of(one.told) == inspect.signature(one.told)
    del Two.told.__signature__  # type: ignore[attr-defined]
    assert signature_of(one.told) == inspect.signature(one.told)
