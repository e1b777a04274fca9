"""Noise levels and what networks predict, against definitions."""

import pytest
import torch

from exitkit.heads.completion.noise_levels import QUANTITIES, NoiseLevels
from tests.heads.completion.naive import KEPT


def placed(flow):
    levels = NoiseLevels()
    if flow:
        shares = [t / 1000 for t in range(1, 1000)]
        found = [float(torch.logit(torch.tensor(1 - s, dtype=torch.float64))) for s in shares]
        levels.place(list(range(1, 1000)), found, True, "velocity")
    else:
        found = (0.5 * (KEPT / (1 - KEPT)).log()).tolist()
        levels.place(list(range(1000)), found, False, "noise")
    return levels


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("seed", range(3))
def test_clean_sample_and_quantities_belong_together(flow, quantity, seed):
    levels, numbers = placed(flow), torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 4, 1, 3, generator=numbers, dtype=torch.float64)
    t = torch.tensor([20.0, 300.0, 600.0, 950.0])
    if flow:
        a, s = 1 - t.double() / 1000, t.double() / 1000
    else:
        a, s = KEPT[t.long()].sqrt(), (1 - KEPT[t.long()]).sqrt()
    a, s = a.view(-1, 1, 1), s.view(-1, 1, 1)
    x = a * clean + s * noise
    velocity = noise - clean if flow else a * noise - s * clean
    value = {"noise": noise, "x0": clean, "velocity": velocity}[quantity]
    torch.testing.assert_close(levels.clean(x, value, quantity, t), clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(levels.quantity(x, clean, quantity, t), value, rtol=1e-3, atol=1e-3)
    other = {"noise": "x0", "x0": "noise", "velocity": "x0"}[quantity]
    assert not torch.allclose(levels.clean(x, value, other, t), clean, atol=1e-2)


def test_between_timesteps_levels_are_interpolated_and_halves_do_not_move_them():
    levels = placed(False)
    ends = levels.log_snr(torch.tensor([500.0, 501.0]))
    assert float(levels.log_snr(torch.tensor([500.5]))) == pytest.approx(float(ends.mean()))
    before = levels.log_snr(torch.tensor([123.0]))
    assert torch.equal(levels.half().log_snr(torch.tensor([123.0])), before)


def test_what_is_predicted_is_read_anew_once_it_is_set():
    levels = placed(False)
    assert levels.kind == (False, "noise")
    levels.load_state_dict(placed(True).state_dict())
    assert levels.kind == (True, "velocity")
