"""Curves over depth and time."""

from __future__ import annotations

from exitkit.report.curves import layer_errors, loss_by_timestep


def test_curves_are_drawn_where_there_is_more_than_a_point(comparison):
    errors = comparison.errors
    assert layer_errors(errors) is not None and loss_by_timestep(errors) is not None
    assert layer_errors({}) is None and loss_by_timestep({}) is None
    one = {name: type(e)(e.timesteps, e.error[:, :1], ("a",), 8) for name, e in errors.items()}
    assert layer_errors(one) is None, "one exit makes no line over depth"
    assert loss_by_timestep(one) is not None
