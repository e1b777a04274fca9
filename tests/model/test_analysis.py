"""What training asks of a wrapped model."""

from __future__ import annotations

import torch

import exitkit as ek
from tests.backbones import case


def test_recordings_and_replays_agree_with_the_backbone() -> None:
    one = case("uvit")
    args, kwargs = one.inputs(3)
    model = ek.wrap(one.make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))
    with torch.no_grad():
        recording = model.record(*args, **kwargs)
        output = model.backbone(*args, **kwargs)
        assert torch.equal(recording.prediction, model.prediction_of(output))
        again, other = model.replay(args, kwargs, [recording.final, 2 * recording.final])
    torch.testing.assert_close(again, recording.prediction)
    assert not torch.allclose(other, recording.prediction)
