"""Where positions of a hidden state lie in the output."""

from __future__ import annotations

import itertools

import pytest
import torch

from exitkit.heads import Grid, OwnOutputHead, UncertaintyHead, token_grid, unpatchify
from exitkit.heads.grid import place, resize
from exitkit.surgery.spec import HiddenSpec
from tests.heads.specs import FEATURES, FOLDED, IMAGE, TOKENS, VECTOR, shake


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [
        (64, 32, 32, Grid(0, 4)),
        (66, 32, 32, Grid(2, 4)),
        (257, 16, 16, Grid(1, 1)),
        (6 * 4 + 1, 12, 8, Grid(1, 2)),
        (1, 32, 32, Grid(0, 32)),
        (3, 5, 3, None),
    ],
)
def test_token_grid_takes_the_fewest_extra_tokens(tokens, height, width, grid):
    assert token_grid(tokens, height, width) == grid


def test_unpatchify_equals_a_naive_loop():
    values = torch.randn(2, 2 * 3, 2 * 2 * 3)
    image = torch.empty(2, 3, 4, 6)
    for row, column, a, b, c in itertools.product(range(2), range(3), range(2), range(2), range(3)):
        vector = values[:, row * 3 + column]
        image[:, c, row * 2 + a, column * 2 + b] = vector[:, (a * 2 + b) * 3 + c]
    assert torch.equal(unpatchify(values, 4, 6, 2), image)


def test_places_for_sequences_packed_latents_and_finer_grids():
    packed = place(HiddenSpec((24, 8), 1), (16, 64))
    assert packed is not None and (packed.kind, packed.extra, packed.outputs) == ("packed", 8, 64)
    sequence = place(HiddenSpec((17, 8), 1), (2, 64))
    assert sequence is not None and (sequence.kind, sequence.extra) == ("patches", 1)
    values = torch.randn(1, 17, sequence.outputs)
    out = sequence.spread(values, 1)
    assert out.shape == (1, 2, 64) and out[0, 1, 4 * 5 + 3] == values[0, 1 + 5, 3 * 2 + 1]
    shuffled = place(FEATURES, IMAGE)
    assert shuffled is not None and (shuffled.patch, shuffled.outputs) == (2, 12)
    values = torch.randn(1, 12, 4, 4)
    assert shuffled.spread(values, 0)[0, 1, 2 * 3 + 1, 2 * 2] == values[0, 1 * 4 + 1 * 2, 3, 2]
    coarser = place(FEATURES, (3, 6, 6))
    assert coarser is not None and coarser.outputs == 3
    assert place(VECTOR, IMAGE) is None and place(TOKENS, (10,)) is None
    assert place(FOLDED, IMAGE) is None


def test_resize_averages_down_interpolates_up_and_keeps():
    x = torch.randn(1, 2, 4, 4)
    assert resize(x, (4, 4)) is x
    torch.testing.assert_close(resize(x, (2, 2))[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    assert resize(x, (6, 3)).shape == (1, 2, 6, 3)
    torch.testing.assert_close(resize(torch.ones(1, 1, 4), (7,)), torch.ones(1, 1, 7))


@pytest.mark.parametrize("frames_first", [False, True])
def test_frames_of_a_video_may_lead_or_follow_the_channels(frames_first):
    hidden = HiddenSpec((8, 5, 4, 4), 0)
    output = (5, 3, 8, 8) if frames_first else (3, 5, 8, 8)
    h, noisy = torch.randn(2, 8, 5, 4, 4), torch.randn(2, *output)
    head = shake(OwnOutputHead(hidden, output, output, 0))
    uncertainty = shake(UncertaintyHead(hidden, output, 0))
    u, out = uncertainty(h), head(h, None, noisy)
    assert out.shape == u.shape == (2, *output)
    moved = h.clone()
    moved[:, :, 0] += 1
    change = (uncertainty(moved) - u).abs()
    by_frame = change.amax(dim=(0, 2, 3, 4) if frames_first else (0, 1, 3, 4))
    assert by_frame[0] > 1e-3
    assert by_frame[1:].max() < 1e-6
