"""Calls of a backbone that go elsewhere for a while, and what runs within an answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.pipelines.routes import routed, take_over, wrapped_in
from exitkit.policies import FixedExit
from tests.backbones import case


class Double(nn.Module):
    """Twice its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def one_more(through: Any, args: Any, kwargs: Any) -> Any:
    return through(*args, **kwargs) + 1


def test_calls_of_a_bare_network_are_answered_and_given_back() -> None:
    network, x = Double(), torch.ones(2)
    with routed({network: one_more}):
        assert network(x).tolist() == [3, 3]
        with routed({network: lambda through, args, kwargs: args[0]}):
            assert network(x).tolist() == [1, 1]
        assert network(x).tolist() == [3, 3]
    assert network(x).tolist() == [2, 2] and "forward" not in vars(network)
    with pytest.raises(ZeroDivisionError), routed({network: one_more}):
        raise ZeroDivisionError
    assert "forward" not in vars(network)


def test_within_an_answer_the_network_is_itself() -> None:
    network, x = Double(), torch.ones(2)

    def answer(through: Any, args: Any, kwargs: Any) -> Any:
        return network(*args) + network(*args)

    with routed({network: answer}):
        assert network(x).tolist() == [4, 4]


def test_other_threads_keep_their_calls() -> None:
    network, x, seen = Double(), torch.ones(1), []
    with routed({network: one_more}):
        thread = threading.Thread(target=lambda: seen.append(network(x).item()))
        thread.start()
        thread.join()
        assert (seen, network(x).item()) == ([2], 3)


def test_a_wrapped_backbone_answers_by_its_exits_unless_it_is_sent_elsewhere() -> None:
    one = case("uvit")
    model = ek.wrap(one.make(), "relative", example_inputs=one.inputs(2)[0])
    model.heads.mark_fitted()
    take_over(model)
    backbone, inputs = model.backbone, ek.Inputs.of(one.inputs(2)[0])
    assert wrapped_in(backbone) is model and wrapped_in(Double()) is None
    with torch.no_grad():
        full = model.prediction_of(backbone(*inputs.args, **inputs.kwargs))
        model.policy = FixedExit(1)
        early = model.prediction_of(backbone(*inputs.args, **inputs.kwargs))
        assert not torch.equal(early, full)

        def bare(through: Any, args: Any, kwargs: Any) -> Any:
            return through(*args, **kwargs)

        def within(through: Any, args: Any, kwargs: Any) -> Any:
            return model(*args, **kwargs)

        for answer, expected in ((bare, full), (within, early)):
            with routed({backbone: answer}):
                made = model.prediction_of(backbone(*inputs.args, **inputs.kwargs))
            assert torch.equal(made, expected)
    ek.unwrap(model)
    assert wrapped_in(backbone) is None and "forward" not in vars(backbone)
