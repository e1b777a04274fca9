"""The reference for landings, against networks that can pass their own blocks over."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.surgery.inputs import bind, signature_of
from exitkit.testing.reference import landed
from tests.landing_networks import TOKENS, Outside, WaveNet, example
from tests.surgery.test_read_graph import seeded


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Outside, {}), (Outside, {"scale": 0.5}), (Outside, {"apart": True}), (WaveNet, {})],
)
def test_a_landed_state_is_the_network_with_the_rest_passed_over(kind, options) -> None:
    net, inputs = seeded(kind, **options), example(TOKENS)
    plan = ek.inspect(net, example_inputs=inputs)
    bound = bind(signature_of(net.forward), inputs, {})
    for depth in range(1, 5):
        with torch.no_grad():
            want = net.passed(*inputs, depth)
        torch.testing.assert_close(landed(net, plan, bound, depth, 5), want, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in net.modules())
