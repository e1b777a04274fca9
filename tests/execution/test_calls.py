"""Calls of a backbone are read as its plan says: rows, time, form, prediction."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.errors import PlanMismatchError, ShapeError
from exitkit.execution.calls import CallReader, locate, stacked_rows
from exitkit.surgery.inputs import bind, signature_of
from tests.backbones import case


@pytest.fixture
def made():
    backbone = case("tuple_blocks")
    args, _ = backbone.inputs(3)
    net = backbone.make()
    model = ek.wrap(net, "relative", example_inputs=args)
    return net, CallReader(model.plan), args


def test_rows_and_times_are_read_by_position_and_name_alike(made):
    net, reader, (x, t) = made
    signature = signature_of(net.forward)
    for args, kwargs in (((x, t), {}), ((x,), {"t": t}), ((), {"t": t, "x": x})):
        rows, noisy, time = reader.read(bind(signature, args, kwargs))
        assert rows == 3 and torch.equal(noisy, x) and time.tolist() == t.tolist()
    _, _, shared = reader.read(bind(signature, (x, 7), {}))
    assert shared.tolist() == [7.0] * 3
    _, _, tokens = reader.read(bind(signature, (x, torch.tensor([[1, 4], [0, 2], [3, 0]])), {}))
    assert tokens.tolist() == [4.0, 2.0, 3.0], "the noisiest stands for the row"


def test_no_rows_and_no_input_are_refused(made):
    net, reader, (x, t) = made
    signature = signature_of(net.forward)
    with pytest.raises(ShapeError, match="an empty batch"):
        reader.read(bind(signature, (x[:0], t[:0]), {}))
    with pytest.raises(ShapeError, match="'x' is missing from this call"):
        reader.read(bind(signature, (None, t), {}))


def test_the_form_forgets_rows_and_keeps_sizes(made):
    net, reader, (x, t) = made
    bound = bind(signature_of(net.forward), (x, t), {})
    assert reader.form(bound, x) == reader.form(bound, x[:2])
    assert reader.form(bound, x) != reader.form(bound, x[..., :2])
    assert reader.form(bound, x) != reader.form(bound, x.double())


def test_the_prediction_is_found_at_its_place_in_another_form(made):
    _, reader, (x, _) = made
    assert locate(x, reader.plan)[1] is x
    assert locate((x, "more"), reader.plan) == ("[0]", x)
    with pytest.raises(PlanMismatchError, match="returned nothing"):
        locate("words", reader.plan)


def test_rows_of_several_sizes_are_padded():
    a, b = torch.ones(2, 2), 2 * torch.ones(3, 1)
    assert stacked_rows([a, b]).tolist() == [[1.0] * 4, [2.0, 2.0, 2.0, 0.0]]
    assert stacked_rows([a, 2 * a]).shape == (2, 2, 2)
