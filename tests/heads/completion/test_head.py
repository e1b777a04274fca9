"""Forecast and correction, against formulas by hand."""

import pytest
import torch

from exitkit.heads.completion.head import CompletionHead
from exitkit.heads.completion.state import FullStep, behind
from tests.heads.completion.naive import KEPT, clean, columns, levels, line

TIMES = (900, 700, 450)


def head_of(**settings):
    head = CompletionHead(**settings)
    found = (0.5 * (KEPT / (1 - KEPT)).log()).tolist()
    head.levels.place(list(range(1000)), found, False, "noise")
    return head


def kept(seed, channels=(1, 1)):
    numbers = torch.Generator().manual_seed(seed)
    state, steps = None, []
    for t in TIMES:
        x = torch.randn(1, channels[0], 4, 4, generator=numbers)
        made = torch.randn(1, channels[1], 4, 4, generator=numbers)
        state = behind(state, FullStep(x, made, torch.tensor([float(t)])), None)
        steps.append((t, x, made))
    return state, steps, torch.randn(1, channels[0], 4, 4, generator=numbers)


@pytest.mark.parametrize("seed", range(3))
def test_the_noise_is_a_line_in_time(seed):
    state, steps, x = kept(seed)
    got = head_of().forecast(x, torch.tensor([300.0]), state)
    torch.testing.assert_close(got, line(steps, 300), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_clean_sample_is_a_line_in_log_snr(seed):
    state, steps, x = kept(seed)
    got = head_of(quantity="x0", along="log_snr").forecast(x, torch.tensor([300.0]), state)
    (t2, x2, e2), (t1, x1, e1) = steps[-2:]
    now, l1, l2 = (levels(t)[2] for t in (300, t1, t2))
    d1, d2 = clean(x1, e1, t1), clean(x2, e2, t2)
    d = d1 + (now - l1) / (l1 - l2) * (d1 - d2)
    signal, noise, _ = levels(300)
    torch.testing.assert_close(got, (x - signal * d) / noise, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(got, line(steps, 300), atol=1e-1)


def test_the_velocity_is_a_line_too():
    state, steps, x = kept(0)
    got = head_of(quantity="velocity").forecast(x, torch.tensor([300.0]), state)

    def velocity(x, e, t):
        signal, noise, _ = levels(t)
        return signal * e - noise * clean(x, e, t)

    (t2, x2, e2), (t1, x1, e1) = steps[-2:]
    v1, v2 = velocity(x1, e1, t1), velocity(x2, e2, t2)
    v = v1 + (300 - t1) / (t1 - t2) * (v1 - v2)
    signal, noise, _ = levels(300)
    torch.testing.assert_close(got, noise * x + signal * v, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("full", [True, False])
def test_scalars_move_by_what_they_are_columns_of(full):
    state, steps, x = kept(1)
    head, t = head_of(), 450 if full else 300
    x = steps[-1][1] if full else x
    numbers = torch.Generator().manual_seed(0)
    scalars = torch.randn(6, generator=numbers).double()
    head.scalars.place(full, {float(t): scalars})
    made = steps[-1][2] if full else line(steps, t)
    got = head.corrected(made, x, torch.tensor([float(t)]), state, full)
    parts = columns(x, t, steps, None if full else made)
    wanted = made + sum(float(c) * p for c, p in zip(scalars, parts, strict=True))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_learned_variance_and_masks_are_handed_through():
    state, _, x = kept(0, channels=(1, 2))  # the second channel is a variance
    head, t = head_of(), torch.tensor([300.0])
    head.scalars.place(False, {300.0: torch.full((6,), 0.1)})
    got = head.corrected(head.forecast(x, t, state), x, t, state, full=False)
    assert torch.equal(got[:, 1:], state.steps[0].prediction[:, 1:])
    state, steps, x = kept(0, channels=(3, 1))  # two channels are a mask
    got = head.forecast(x, t, state)
    assert got.shape == (1, 1, 4, 4)
    torch.testing.assert_close(got, line(steps, 300), rtol=1e-5, atol=1e-5)


def test_half_precision_goes_in_and_out_and_moves_no_scalar():
    state, _, x = kept(0)
    head, t = head_of(), torch.tensor([300.0])
    head.scalars.place(False, {300.0: torch.full((6,), 0.1234567)})
    before = head.scalars.values.clone()
    head.half()
    assert torch.equal(head.scalars.values, before) and head.scalars.values.dtype == torch.float64
    half = head.corrected(head.forecast(x, t, state).half(), x.half(), t, state, full=False)
    assert half.dtype == torch.float16
